"""How a picture gets the public URL that a live Lens wants, for the time of one search. A new uploader is one new file here.

An uploader's module defines `make(section, tools)`; module names are the values of `search.image.uploader`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from megatron_mmsr1.config.search import ImageSection
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.plugins.registry import Registry, is_callable
from megatron_mmsr1.search.backends.tools import Tools


class Uploader(Protocol):
    name: str

    def public(self, data: bytes, media_type: str) -> AbstractAsyncContextManager[str]:
        """A URL from which anybody who holds it may read `data` inside the block; it is taken back at the block's end.

        The URL is a bearer secret: never logged, never in an error. Raises SearchFailure where the picture cannot be shown.
        """
        ...

    async def close(self) -> None:
        """End what is still under way; called once, in the loop that made the calls."""
        ...


def open_uploader(section: ImageSection, tools: Tools) -> Uploader:
    """The uploader that a section names. UsageError where it names none, or one whose settings are not complete."""
    if section.uploader == "none":
        raise UsageError(
            f"search.image.backend={section.backend} sends a picture as a public URL: set search.image.uploader to s3 (a "
            "bucket of yours, with presigned links) or to signed_route (this server shows it; it must be reachable from "
            "outside), and search.image.upload to its settings"
        )
    return get(section.uploader)(section, tools)


REGISTRY: Registry[Callable[[ImageSection, Tools], Uploader]] = Registry(
    "uploader", __name__, "make", key="search.image.uploader", check=is_callable("(section, tools)")
)
get = REGISTRY.get
