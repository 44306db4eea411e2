"""This server shows the picture itself, under a signed link. It, or the gateway before it, must be reachable from outside."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from megatron_mmsr1.config.search import ImageSection
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.backends.tools import Tools, typed
from megatron_mmsr1.trajectory import ToolStatus


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
    async def public(self, data: bytes, media_type: str) -> AsyncGenerator[str]:
        link = self._files.put(data, media_type, self._expires_s)
        try:
            yield self._base + link
        finally:
            self._files.remove(link)

    async def close(self) -> None:
        pass


# Pictures that this server shows for a while to whoever holds their link: what the signed_route uploader gives a live Lens.
#
# A link is a bearer secret: an id that cannot be guessed, an expiry, and a signature with a key that dies with the process.

PREFIX = "/v1/public/"
_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'",
}


@dataclass(slots=True, frozen=True)
class _Shown:
    data: bytes
    media_type: str
    until: int  # Unix seconds


class PublicFiles:
    """In memory. `max_bytes` over all pictures that are shown at once; `clock` gives Unix seconds.

    Mount `serve` for GET at PREFIX + "{id}", outside of any check of API keys: who holds a link may look.
    """

    def __init__(self, max_bytes: int = 256 * 2**20, clock: Callable[[], float] = time.time):
        self._max_bytes, self._clock = max_bytes, clock
        self._key = secrets.token_bytes(32)
        self._shown: dict[str, _Shown] = {}
        self._bytes = 0

    def put(self, data: bytes, media_type: str, ttl_s: float) -> str:
        """Show `data` for `ttl_s` seconds; the link's path and query, to be put behind the server's public address.

        SearchFailure(rate_limited) where too much is shown already.
        """
        if self._bytes + len(data) > self._max_bytes:
            self._drop_expired()
        if self._bytes + len(data) > self._max_bytes:
            why = f"{len(self._shown)} pictures with {self._bytes} bytes are shown already; the cap is {self._max_bytes}"
            raise SearchFailure(ToolStatus.RATE_LIMITED, why)
        name = secrets.token_urlsafe(24)
        until = int(self._clock() + ttl_s) + 1
        self._shown[name] = _Shown(data, media_type, until)
        self._bytes += len(data)
        return f"{PREFIX}{name}?exp={until}&sig={self._sign(name, until)}"

    def remove(self, link: str) -> None:
        """Show it no longer. `link` is what `put` gave."""
        self._forget(link.removeprefix(PREFIX).partition("?")[0])

    async def serve(self, request: Request) -> Response:
        """The picture of a valid link; 404 for any other, whatever is wrong with it."""
        if request.method not in ("GET", "HEAD"):
            return Response("only GET and HEAD\n", 405, {"allow": "GET, HEAD"}, "text/plain")
        found = self._find(request.path_params["id"], request.query_params.get("exp", ""), request.query_params.get("sig", ""))
        if found is None:
            return Response("no such picture\n", 404, _HEADERS, "text/plain")
        headers = {**_HEADERS, "content-length": str(len(found.data))}
        return Response(b"" if request.method == "HEAD" else found.data, 200, headers, found.media_type)

    def _find(self, name: str, until: str, signature: str) -> _Shown | None:
        if not (until.isascii() and until.isdecimal() and len(until) <= 12):
            return None
        # Before anything is looked up, and in constant time: a wrong signature learns nothing, not even whether the id exists.
        if not hmac.compare_digest(self._sign(name, int(until)).encode(), signature.encode()):
            return None
        if self._clock() >= int(until):
            self._forget(name)
            return None
        return self._shown.get(name)

    def _sign(self, name: str, until: int) -> str:
        return hmac.new(self._key, f"{name}\n{until}".encode(), hashlib.sha256).hexdigest()

    def _drop_expired(self) -> None:
        now = self._clock()
        for name in [n for n, f in self._shown.items() if f.until <= now]:
            self._forget(name)

    def _forget(self, name: str) -> None:
        gone = self._shown.pop(name, None)
        if gone is not None:
            self._bytes -= len(gone.data)
