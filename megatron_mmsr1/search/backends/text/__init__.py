"""Text search backends, a file each: `make(section, tools)` gives a `search.backends.interfaces.TextBackend`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_mmsr1.plugins.registry import Registry, is_callable

Make = Callable[..., Any]  # (section, search.backends.tools.Tools)
REGISTRY: Registry[Make] = Registry(
    "text_backend", __name__, "make", key="search.text.backend", check=is_callable("(section, tools)")
)
get = REGISTRY.get
