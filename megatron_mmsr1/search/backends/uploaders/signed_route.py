"""This server shows the picture itself, under a signed link. It, or the gateway before it, must be reachable from outside."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import Field

from megatron_mmsr1.config.search import ImageSection
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.check import Tools, typed
from megatron_mmsr1.search.web.public import PublicFiles


class Settings(Section):
    """`search.image.upload` for the signed_route uploader."""

    base_url: str = Field(
        pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$", description="the address that the outside knows this server by"
    )
    expires_s: float = Field(default=600.0, gt=0, le=86_400, description="a link's life, if its search does not end it before")


def make(section: ImageSection, tools: Tools) -> SignedRoute:
    if tools.public is None:
        raise UsageError("search.image.uploader=signed_route works in a search server only (mmsr1 search serve)")
    settings = typed(section.upload, Settings, "search.image.upload")
    return SignedRoute(tools.public, settings.base_url, settings.expires_s)


class SignedRoute:
    name = "signed_route"

    def __init__(self, files: PublicFiles, base_url: str, expires_s: float):
        self._files, self._base, self._expires_s = files, base_url.rstrip("/"), expires_s

    @asynccontextmanager
    async def public(self, data: bytes, media_type: str) -> AsyncIterator[str]:
        link = self._files.put(data, media_type, self._expires_s)
        try:
            yield self._base + link
        finally:
            self._files.remove(link)

    async def close(self) -> None:
        pass
