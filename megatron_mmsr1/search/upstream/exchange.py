"""One HTTP exchange with a backend: a request whose keys nobody sees, a capped body, JSON, and what an HTTP code means."""

from __future__ import annotations

import functools
import logging
import ssl
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx
import orjson

from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.upstream.secrets import Secret
from megatron_mmsr1.trajectory import ToolStatus
from megatron_mmsr1.untyped import is_dict, is_list

MAX_REPLY_BYTES = 16 * 2**20
# Connections a client: at each request httpx asks every idle one of them whether it is still alive, and several times over. One
# client over 64 connections so took nine times as long for a burst as eight over eight.
POOL = 8
KEEPALIVE_S = 4  # less than the 5 s of uvicorn and of many others: a connection is never reused just as it is closed
NOT_AS_DOCUMENTED = (KeyError, TypeError, ValueError, AttributeError, IndexError)

# At INFO httpx logs whole URLs, at DEBUG httpcore logs headers: a key may stand in either.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(slots=True, frozen=True)
class Ask:
    """One HTTP request. `secret_params` and `secret_headers` hold keys; nothing of them is ever shown."""

    method: str
    url: str
    params: Mapping[str, str | int] = field(default_factory=dict[str, str | int])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    json: Any = None
    secret_params: Mapping[str, Secret] = field(default_factory=dict[str, Secret])
    secret_headers: Mapping[str, Secret] = field(default_factory=dict[str, Secret])
    bearer: Secret | None = None


# What a vendor's file may know better about a failure than its HTTP code says: given the code and the decoded body (None where
# it is no JSON), the failure, or None for the rule of `classify`. It may trip over a body that is not as documented.
Explain = Callable[[int, Any], SearchFailure | None]


class Exchange:
    """The connections to one backend. Belongs to one event loop; `close` it there."""

    def __init__(self, name: str, connections: int):
        self._name = name
        self._pools = [_Pool(min(POOL, connections - at)) for at in range(0, connections, POOL)]

    async def __call__[T](self, ask: Ask, read: Callable[[Any], T], explain: Explain) -> T:
        """What `read` makes of the JSON of a 2xx. Raises SearchFailure; one after a 2xx counts as billed."""
        code, headers, body = await self._send(ask)
        said = _json(body)
        if not 200 <= code < 300:
            raise _explained(explain, code, said) or classify(self._name, code, said, headers)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind and "json" not in kind:
            raise self._useless(f"answered {kind[:80]} where JSON is documented")
        if said is None:
            raise self._useless("answered something that is not JSON")
        if (known := _explained(explain, code, said)) is not None:  # some put their errors into a 200
            raise known
        try:
            return read(said)
        except NOT_AS_DOCUMENTED as e:
            what = f"{type(e).__name__}: {str(e)[:80]}"
        raise self._useless(f"gave an answer that is not as documented ({what})")

    async def close(self) -> None:
        for pool in self._pools:
            await pool.close()

    def _useless(self, what: str) -> SearchFailure:
        return SearchFailure(ToolStatus.UPSTREAM_ERROR, f"{self._name} {what}", billed=True)

    async def _send(self, ask: Ask) -> tuple[int, httpx.Headers, bytes]:
        params = {**ask.params, **{k: s.value for k, s in ask.secret_params.items()}}
        headers = {**ask.headers, **{k: s.value for k, s in ask.secret_headers.items()}}
        if ask.bearer is not None:
            headers["authorization"] = f"Bearer {ask.bearer.value}"
        body = None if ask.json is None else orjson.dumps(ask.json)
        if body is not None:
            headers["content-type"] = "application/json"
        try:
            # A stream, so that a body without end is left at the cap.
            with self._client() as client:
                async with client.stream(ask.method, ask.url, params=params or None, headers=headers, content=body) as r:
                    return r.status_code, r.headers, await self._body(r)
        except httpx.ConnectError:
            failure = SearchFailure(ToolStatus.UPSTREAM_ERROR, f"no connection to {self._name}", retry=0.0)
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            # Cut off in mid-exchange: whether it was billed is not known, so it counts as billed and is not asked again.
            sent = not isinstance(e, httpx.InvalidURL | httpx.UnsupportedProtocol | httpx.LocalProtocolError)
            why = f"the exchange with {self._name} broke ({type(e).__name__})"
            failure = SearchFailure(ToolStatus.UPSTREAM_ERROR, why, billed=sent)
        raise failure  # out here, for httpx's exceptions hold the request, and that the key

    async def _body(self, r: httpx.Response) -> bytes:
        packed = r.headers.get("content-encoding", "identity").strip().lower()
        if packed not in ("identity", "gzip"):  # others unpack to thousands of times their size before anybody can look
            raise self._useless(f"answered in an encoding that was not asked for ({packed[:40]})")
        chunks: list[bytes] = []
        size = 0
        async for chunk in r.aiter_bytes():
            size += len(chunk)
            if size > MAX_REPLY_BYTES:
                raise self._useless(f"answered over {MAX_REPLY_BYTES} bytes")
            chunks.append(chunk)
        return b"".join(chunks)

    @contextmanager
    def _client(self) -> Generator[httpx.AsyncClient]:
        """The first with a free connection, so that few are kept open; the caller sees to it that there is one."""
        pool = next((p for p in self._pools if p.busy < p.connections), self._pools[0])
        pool.busy += 1
        try:
            yield pool.client()
        finally:
            pool.busy -= 1


@functools.cache
def _tls() -> ssl.SSLContext:
    """One for all: to load the certificates takes 30 ms."""
    return httpx.create_ssl_context(trust_env=False)


class _Pool:
    """A few connections, opened when they are needed."""

    def __init__(self, connections: int):
        self.connections = connections
        self.busy = 0
        self._http: httpx.AsyncClient | None = None

    def client(self) -> httpx.AsyncClient:
        if self._http is None:
            n = self.connections
            self._http = httpx.AsyncClient(
                timeout=None,  # the deadlines of the caller are the clock
                verify=_tls(),
                limits=httpx.Limits(max_connections=n, max_keepalive_connections=n, keepalive_expiry=KEEPALIVE_S),
                headers={"accept-encoding": "gzip", "user-agent": "megatron-mmsr1"},
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # an answer depends on no earlier call
                trust_env=False,
                follow_redirects=False,  # an API that redirects is not the one that was configured
            )
        return self._http

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _explained(explain: Explain, code: int, said: Any) -> SearchFailure | None:
    try:
        return explain(code, said)
    except NOT_AS_DOCUMENTED:
        return None


def classify(name: str, code: int, said: Any, headers: Mapping[str, str]) -> SearchFailure:
    """A failure by its HTTP code alone, with the vendor's own words where it gave some."""
    words = message(said)
    detail = f"{name} answered HTTP {code}" + (f": {words}" if words else "")
    if code == 429:
        return SearchFailure(ToolStatus.RATE_LIMITED, detail, retry=retry_after(headers))
    if code == 402:
        return SearchFailure(ToolStatus.BUDGET, detail)
    if code in (408, 504):
        return SearchFailure(ToolStatus.TIMEOUT, detail, retry=0.0 if code == 504 else None)
    if code >= 500:
        return SearchFailure(ToolStatus.UPSTREAM_ERROR, detail, retry=retry_after(headers))
    if code in (400, 413, 414, 422):
        return SearchFailure(ToolStatus.REFUSED, detail)
    # A key that is refused, an address that has moved: nobody who asks can mend it, and no query is at fault.
    return SearchFailure(ToolStatus.UPSTREAM_ERROR, detail)


def message(said: Any, depth: int = 8) -> str:
    """What a JSON error says in the places where vendors put it, "" if nowhere."""
    if isinstance(said, str):
        return said
    if not depth:
        return ""
    if is_dict(said):
        return next((m for k in ("error", "message", "detail", "msg", "errors") if (m := message(said.get(k), depth - 1))), "")
    return message(said[0], depth - 1) if is_list(said) and said else ""


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds to wait: a Retry-After header (a number, or a date of RFC 9110), else the X-RateLimit-* windows that are used up
    (as Brave gives them: `X-RateLimit-Remaining: 0, 1000` and `X-RateLimit-Reset: 1, 1419704`); 0 without either."""
    from email.utils import parsedate_to_datetime

    value = headers.get("retry-after", "").strip()
    if not value:
        return _used_up(headers.get("x-ratelimit-remaining", ""), headers.get("x-ratelimit-reset", ""))
    if value.replace(".", "", 1).isdecimal() and value.isascii():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _used_up(left: str, reset: str) -> float:
    windows = [(a.strip(), b.strip()) for a, b in zip(left.split(","), reset.split(","), strict=False)]
    # Ten digits are a moment since 1970, as others write it, not seconds to come.
    return max((float(s) for n, s in windows if n == "0" and s.isdecimal() and s.isascii() and len(s) < 10), default=0.0)
