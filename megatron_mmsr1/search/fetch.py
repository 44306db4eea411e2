"""Fetching what a model, a page or a user named, without letting them reach anything but the public internet.

Every hop is checked from the start: the URL is taken apart strictly (`urls`), its host is resolved once, every address must be
public (`addresses`), and the connection goes to those addresses with the host's name in Host and SNI, so that no second look-up
can say otherwise. No proxies, no cookies, no credentials; caps on time, bytes, redirects and types.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import httpcore

from megatron_mmsr1.config.search import FetchSection
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.upstream.deadline import within
from megatron_mmsr1.search.web.body import ACCEPTED, Inflater, decode_text
from megatron_mmsr1.search.web.network import Network, Pinned
from megatron_mmsr1.search.web.urls import PORTS, Allowed, FetchFailed, Reason, Refused, Target, join, own_name, parse, refusal
from megatron_mmsr1.trajectory import ToolStatus

__all__ = ["IMAGES", "PAGES", "FetchFailed", "Fetched", "Fetcher", "Network", "Reason", "Refused", "fetch"]

PAGES = ("text/html", "application/xhtml+xml", "text/plain")
IMAGES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/jpg")
MAX_REDIRECTS = 3
HEADER_BYTES = 256 * 1024  # what an answer may have on the wire beside its body
USER_AGENT = FetchSection().user_agent
_CHARSET = re.compile(r"""charset\s{0,8}=\s{0,8}["']?([\w.:-]{1,40})""", re.IGNORECASE | re.ASCII)
_REDIRECTS = (301, 302, 303, 307, 308)
# What breaks in an exchange: httpcore's own, and TLS errors after the handshake.
_BROKEN = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError)


@dataclass(slots=True, frozen=True)
class Fetched:
    """`url`: where it came from in the end; `redirects`: the URLs before it, in order. `body`: decompressed.

    `content_type`: lower case, without parameters; `charset`: what the header says, None where it says nothing.
    """

    url: str
    status: int
    content_type: str
    charset: str | None
    body: bytes
    redirects: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The body as text; decoded anew at each call."""
        return decode_text(self.body, self.charset)


async def fetch(
    url: str,
    *,
    deadline_s: float = 10,
    max_bytes: int = 5_000_000,
    allow: Iterable[str] = (),
    accept: Sequence[str] = PAGES,
    user_agent: str = USER_AGENT,
    network: Network | None = None,
) -> Fetched:
    """The 2xx answer to a GET.

    `deadline_s` is for all of it, from the first look-up to the body's last byte. `max_bytes` holds before and after
    decompression. `allow`: hosts of one's own (HOST or HOST:PORT) that may be private and on any port. `accept`: the content
    types that are read.

    Raises Refused for what the guard refuses, FetchFailed for what fails on the way, UsageError for a broken `allow`.
    """
    section = FetchSection(allow=list(allow), deadline_s=deadline_s, max_bytes=max_bytes, user_agent=user_agent)
    return await Fetcher(section, network).get(url, accept)


class Fetcher:
    """`fetch` with a config's settings. Holds no connection: a page's host is seldom asked twice.

    Raises UsageError for a setting that cannot be used.
    """

    def __init__(self, section: FetchSection, network: Network | None = None):
        self._section = section
        self._allowed = Allowed(section.allow)
        self._network = _system() if network is None else network
        if not section.user_agent.isascii() or not section.user_agent.isprintable():
            raise UsageError("search.fetch.user_agent must be one line of ASCII")

    async def get(self, url: str, accept: Sequence[str] = PAGES) -> Fetched:
        """See `fetch`."""
        try:
            async with within(self._section.deadline_s, "the fetch"):
                return await self._follow(parse(url), accept)
        except (Refused, FetchFailed):
            raise
        except SearchFailure as e:
            raise FetchFailed(e.status, e.detail) from None

    async def close(self) -> None:
        pass

    async def _follow(self, target: Target, accept: Sequence[str]) -> Fetched:
        passed: list[str] = []
        while True:
            answer = await self._hop(target, accept, tuple(passed))
            if isinstance(answer, Fetched):
                return answer
            passed.append(target.url)
            if len(passed) > MAX_REDIRECTS:
                raise Refused(Reason.REDIRECTS, f"more than {MAX_REDIRECTS} redirects")
            if target.scheme == "https" and answer.scheme == "http":
                raise Refused(Reason.DOWNGRADE, "a redirect from https to http")
            target = answer

    async def _hop(self, target: Target, accept: Sequence[str], passed: tuple[str, ...]) -> Fetched | Target:
        """One request: the answer, or where it sends us."""
        backend = Pinned(self._network, await self._addresses(target), self._section.max_bytes + HEADER_BYTES)
        url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        headers: dict[str | bytes, str | bytes] = {
            "Host": target.authority,
            "User-Agent": self._section.user_agent,
            "Accept": ", ".join(accept),
            "Accept-Encoding": ACCEPTED,
            "Connection": "close",
        }
        tls = self._network.tls if target.scheme == "https" else None
        try:
            async with (
                httpcore.AsyncConnectionPool(ssl_context=tls, network_backend=backend) as pool,
                pool.stream("GET", url, headers=headers) as response,
            ):
                return await self._answer(target, response, accept, passed)
        except _BROKEN as e:
            # Only TLS errors are quoted: the others may quote the host.
            words = f": {str(e)[:120]}" if isinstance(e, httpcore.ConnectError) else ""
            why = f"the exchange with {target.host[:80]} broke ({type(e).__name__}{words})"
            raise FetchFailed(ToolStatus.UPSTREAM_ERROR, why) from None

    async def _addresses(self, target: Target) -> list[str]:
        """Where a target may be connected to. Raises Refused if it, or any one address of its host, may not be reached."""
        if target in self._allowed:
            return [target.host] if target.address is not None else await self._network.resolve(target.host, target.port)
        if target.port not in PORTS.values():
            raise Refused(Reason.PORT, f"port {target.port}; only 80 and 443 are fetched from")
        if target.address is None and own_name(target.host):
            raise Refused(Reason.HOST, f"{target.host[:80]} is a name of this machine's own network")
        found = [target.host] if target.address is not None else await self._network.resolve(target.host, target.port)
        for address in found:
            if (why := refusal(ip_address(address))) is not None:
                raise Refused(Reason.ADDRESS, f"{target.host[:80]} is at {address}: {why}")
        return found

    async def _answer(
        self, target: Target, response: httpcore.Response, accept: Sequence[str], passed: tuple[str, ...]
    ) -> Fetched | Target:
        headers = _Headers(response)
        location = headers.one("location")
        if response.status in _REDIRECTS and location:
            return join(target, location)
        if not 200 <= response.status < 300:
            raise _http_error(response.status, target.host)
        kind, charset = headers.kind()
        if kind not in accept:
            raise Refused(Reason.CONTENT_TYPE, f"the content type is {kind[:60] or 'not given'}; read are {', '.join(accept)}")
        cap = self._section.max_bytes
        length = headers.one("content-length")
        if length.isdecimal() and int(length) > cap:
            raise Refused(Reason.SIZE, f"the body has {length} bytes; the limit is {cap}")
        inflater = Inflater(headers.one("content-encoding"), cap)
        body = bytearray()
        async for chunk in response.aiter_stream():
            body += inflater.feed(chunk)
        inflater.end()
        return Fetched(target.url, response.status, kind, charset, bytes(body), passed)


class _Headers:
    def __init__(self, response: httpcore.Response):
        self._items = [(k.decode("ascii", "replace").lower(), v) for k, v in response.headers]

    def one(self, name: str) -> str:
        """A header's value, several joined by commas as HTTP has it; "" where there is none."""
        return ", ".join(v.decode("utf-8", "replace") for k, v in self._items if k == name)

    def kind(self) -> tuple[str, str | None]:
        """(type/subtype, charset) of the content."""
        kind, _, parameters = self.one("content-type").partition(";")
        charset = _CHARSET.search(parameters)
        return kind.strip().lower(), charset and charset[1]


def _http_error(code: int, host: str) -> FetchFailed:
    detail = f"{host[:80]} answered HTTP {code}"
    if code in (404, 410):
        return FetchFailed(ToolStatus.EMPTY, detail)
    if code == 429:  # of one host among many: no reason to rest
        return FetchFailed(ToolStatus.RATE_LIMITED, detail)
    if code in (408, 504):
        return FetchFailed(ToolStatus.TIMEOUT, detail, retry=0.0 if code == 504 else None)
    return FetchFailed(ToolStatus.UPSTREAM_ERROR, detail, retry=0.0 if code >= 500 else None)


@functools.cache
def _system() -> Network:
    """One for the process: reading the certificates takes a while."""
    return Network()
