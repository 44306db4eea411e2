"""The search server's client. A call never raises for what the tool or the network did: every failure is a typed status.

Calls that are made at the same time travel together (batching.py); a lone one goes to its own endpoint.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import re
from typing import Any

import orjson
from pydantic import ValidationError

from megatron_mmsr1.search.batching import CLOSED, Batcher, Item
from megatron_mmsr1.search.wire import ImageReply, PageReply, Reply, SummaryReply, TextReply
from megatron_mmsr1.trajectory import ToolStatus
from megatron_mmsr1.untyped import is_dict

RETRIES = 2
BACKOFF_S = 0.2  # doubled a retry, with full jitter
_PLAIN = re.compile(r"[!-~]{0,200}")
_RETRYABLE = frozenset({0, 429, 500, 502, 503, 504})  # 0: no connection


class SearchClient:
    """Calls to the server at `url`. `timeout_s` bounds a call as a whole, waiting for a connection and retries included.

    Only connection errors, 429 and 5xx are tried again, after Retry-After where the server names it. `run` and `step` are who
    pays (`search.budget`); `step` may be set anew at any time. `call` in a call is its own id, by which `record` keeps what
    only this call met and the replays find it. Belongs to one event loop; `close` it there, or use it as an async context
    manager.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 30.0,
        retries: int = RETRIES,
        connections: int = 256,
        run: str = "",
        step: int = -1,
    ):
        self.url = url.rstrip("/")
        self.run, self.step = run, step
        self._timeout_s = timeout_s
        self._retries = retries
        self._batcher = Batcher(self.url, connections)

    async def text(self, query: str, k: int = 5, *, call: str = "") -> TextReply:
        return await self._call("text", {"query": query, "k": k}, call, TextReply)

    async def image(self, data: bytes, k: int = 5, *, call: str = "") -> ImageReply:
        """`data`: an encoded picture (PNG, JPEG, WebP, GIF, BMP)."""
        return await self._call("image", {"image_base64": base64.b64encode(data).decode(), "k": k}, call, ImageReply)

    async def read(self, url: str, *, call: str = "") -> PageReply:
        return await self._call("read", {"url": url}, call, PageReply)

    async def summarise(self, query: str, text: str, *, call: str = "") -> SummaryReply:
        return await self._call("summarise", {"query": query, "text": text}, call, SummaryReply)

    async def stats(self) -> dict[str, Any]:
        """The server's own account (/v1/stats); {} where it does not answer within 2 s."""
        return await self._batcher.get("/v1/stats", timeout_s=2.0)

    async def close(self) -> None:
        await self._batcher.close()

    async def __aenter__(self) -> SearchClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call[R: Reply](self, op: str, body: dict[str, Any], call: str, reply: type[R]) -> R:
        try:
            item = Item(op, _wire_id(call), orjson.dumps(body), self.run, self.step)
        except TypeError as e:  # a lone surrogate, which no UTF-8 can carry
            return reply(status=ToolStatus.REFUSED, detail=f"the request cannot be sent: {e}")
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._tried(item, reply)
        except TimeoutError:
            answer = reply(status=ToolStatus.TIMEOUT, detail=f"no answer from the search server within {self._timeout_s:g} s")
        answer.seconds = asyncio.get_running_loop().time() - started
        return answer

    async def _tried[R: Reply](self, item: Item, reply: type[R]) -> R:
        for attempt in range(self._retries):
            code, body, wait = await self._batcher.ask(item)
            if code not in _RETRYABLE:
                return _parse(code, body, reply)
            await asyncio.sleep(max(wait, random.uniform(0, BACKOFF_S * 2**attempt)))
        code, body, _ = await self._batcher.ask(item)
        return _parse(code, body, reply)


def _wire_id(call: str) -> str:
    """The same id on every road: a header holds neither all characters nor all lengths that a prompt's name may have."""
    if _PLAIN.fullmatch(call):
        return call
    return f"sha256:{hashlib.sha256(call.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _parse[R: Reply](code: int, body: bytes, reply: type[R]) -> R:
    if code == 200:
        try:
            return reply.model_validate_json(body)
        except ValidationError as e:
            why = f"the search server's reply is malformed: {e.errors()[0]['msg']}"
            return reply(status=ToolStatus.UPSTREAM_ERROR, detail=why)
    if code in (0, CLOSED):  # nothing was answered: the body says why
        return reply(status=ToolStatus.UPSTREAM_ERROR, detail=body[:200].decode("utf-8", "replace"))
    failed = ToolStatus.UPSTREAM_ERROR if code >= 500 else ToolStatus.REFUSED
    status = ToolStatus.RATE_LIMITED if code == 429 else failed
    return reply(status=status, detail=f"HTTP {code}: {_detail(body)}")


def _detail(body: bytes) -> str:
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body[:200].decode("utf-8", "replace")
    return str(said.get("detail", "")) if is_dict(said) else ""
