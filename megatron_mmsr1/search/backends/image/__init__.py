"""Image search backends, a file each: `make(section, tools)` gives a `search.backends.interfaces.ImageBackend`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_mmsr1.plugins.registry import Registry, is_callable

Make = Callable[..., Any]  # (section, search.backends.tools.Tools)
REGISTRY: Registry[Make] = Registry(
    "image_backend",
    __name__,
    "make",
    key="search.image.backend",
    check=is_callable("(section, tools)"),
    shared={"serpapi_lens": "_lens", "serper_lens": "_lens"},
)
get = REGISTRY.get
