"""The search server's client. A call never raises for what the tool or the network did: every failure is a typed status.

aiohttp rather than httpx: on loopback it makes some ten thousand calls a second where httpx makes a few hundred, and fewer the
more are in flight.
"""

from __future__ import annotations

import asyncio
import base64
import random
import threading
from collections.abc import Coroutine
from typing import Any

import aiohttp
import orjson
from pydantic import ValidationError

from megatron_mmsr1.search.replies import ImageReply, PageReply, Reply, SummaryReply, TextReply
from megatron_mmsr1.trajectory import ToolStatus

RETRIES = 2
BACKOFF_S = 0.2  # doubled a retry, with full jitter
_RETRYABLE = frozenset({429, 500, 502, 503, 504})
_HEADERS = {"content-type": "application/json"}


class SearchClient:
    """Calls to the server at `url`. `timeout_s` bounds a call as a whole, waiting for a connection and retries included.

    Only connection errors, 429 and 5xx are tried again, after Retry-After where the server names it. Belongs to one event
    loop; `close` it there, or use it as an async context manager.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0, retries: int = RETRIES, connections: int = 256):
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._retries = retries
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def text(self, query: str, k: int = 5) -> TextReply:
        return await self._call("/v1/search/text", {"query": query, "k": k}, TextReply)

    async def image(self, data: bytes, k: int = 5) -> ImageReply:
        """`data`: an encoded picture (PNG, JPEG, WebP, GIF, BMP)."""
        return await self._call("/v1/search/image", {"image_base64": base64.b64encode(data).decode(), "k": k}, ImageReply)

    async def read(self, url: str) -> PageReply:
        return await self._call("/v1/read", {"url": url}, PageReply)

    async def summarise(self, query: str, text: str) -> SummaryReply:
        return await self._call("/v1/summarise", {"query": query, "text": text}, SummaryReply)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def __aenter__(self) -> SearchClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call[R: Reply](self, path: str, body: dict[str, Any], reply: type[R]) -> R:
        try:
            data = orjson.dumps(body)
        except TypeError as e:  # a lone surrogate, which no UTF-8 can carry
            return reply(status=ToolStatus.REFUSED, detail=f"the request cannot be sent: {e}")
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._tried(path, data, reply)
        except TimeoutError:
            answer = reply(status=ToolStatus.TIMEOUT, detail=f"no answer from the search server within {self._timeout_s:g} s")
        answer.seconds = asyncio.get_running_loop().time() - started
        return answer

    async def _tried[R: Reply](self, path: str, data: bytes, reply: type[R]) -> R:
        for attempt in range(self._retries):
            answer, wait = await self._once(path, data, reply)
            if wait is None:
                return answer
            await asyncio.sleep(max(wait, random.uniform(0, BACKOFF_S * 2**attempt)))
        return (await self._once(path, data, reply))[0]

    async def _once[R: Reply](self, path: str, data: bytes, reply: type[R]) -> tuple[R, float | None]:
        """One try, and the seconds to wait at least before another; None: another would not help."""
        try:
            # No redirects: the server is where the config says it is.
            async with self._pool().post(self.url + path, data=data, headers=_HEADERS, allow_redirects=False) as r:
                again = _retry_after(r.headers.get("retry-after")) if r.status in _RETRYABLE else None
                return _parse(r.status, await r.read(), reply), again
        except aiohttp.ClientError as e:
            why = f"no connection to the search server ({type(e).__name__})"
            return reply(status=ToolStatus.UPSTREAM_ERROR, detail=why), 0.0

    def _pool(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=30)
            # Environment proxies must not see loopback traffic; the deadline above is the only clock.
            timeout = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False)
        return self._session


def _parse[R: Reply](code: int, body: bytes, reply: type[R]) -> R:
    if code == 200:
        try:
            return reply.model_validate_json(body)
        except ValidationError as e:
            why = f"the search server's reply is malformed: {e.errors()[0]['msg']}"
            return reply(status=ToolStatus.UPSTREAM_ERROR, detail=why)
    failed = ToolStatus.UPSTREAM_ERROR if code >= 500 else ToolStatus.REFUSED
    status = ToolStatus.RATE_LIMITED if code == 429 else failed
    return reply(status=status, detail=f"HTTP {code}: {_detail(body)}")


def _detail(body: bytes) -> str:
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body[:200].decode("utf-8", "replace")
    return str(said.get("detail", "")) if isinstance(said, dict) else ""


def _retry_after(header: str | None) -> float:
    return float(header) if header is not None and header.isdecimal() else 0.0


class SyncSearchClient:
    """The same calls for code without an event loop, or inside somebody else's (a notebook); safe from several threads."""

    def __init__(self, url: str, **options: Any):
        self._client = SearchClient(url, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="search client", daemon=True)
        self._thread.start()

    def text(self, query: str, k: int = 5) -> TextReply:
        return self._wait(self._client.text(query, k))

    def image(self, data: bytes, k: int = 5) -> ImageReply:
        return self._wait(self._client.image(data, k))

    def read(self, url: str) -> PageReply:
        return self._wait(self._client.read(url))

    def summarise(self, query: str, text: str) -> SummaryReply:
        return self._wait(self._client.summarise(query, text))

    def close(self) -> None:
        self._wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait[T](self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def __enter__(self) -> SyncSearchClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
