"""Calls that are made in the same turn of the event loop go to the server in one request; each is answered as it is done.

aiohttp rather than httpx: on loopback it makes some ten times as many requests a second, and batches make ten times as many
calls of them again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson

from megatron_mmsr1.untyped import is_dict

MAX_CALLS, MAX_BYTES = 64, 1_000_000  # a batch
PATHS = {"text": "/v1/search/text", "image": "/v1/search/image", "read": "/v1/read", "summarise": "/v1/summarise"}

CLOSED = -1
Answer = tuple[int, bytes, float]  # HTTP code (0: no connection, CLOSED: never sent), body, seconds to wait before another try


_CLOSED: Answer = (CLOSED, b"the search client is closed", 0.0)


@dataclass(slots=True, frozen=True)
class Item:
    """One call. `body`: its endpoint's JSON."""

    op: str
    call: str
    body: bytes
    run: str
    step: int


class Batcher:
    """Belongs to one event loop. At most `connections` requests at a time, however many calls they hold."""

    def __init__(self, url: str, connections: int):
        self._url = url
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._sending: set[asyncio.Task[None]] = set()
        self._closed = False

    async def ask(self, item: Item) -> Answer:
        """Never raises for what server or network do."""
        if self._closed:
            return _CLOSED
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Answer] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)  # after everyone who is about to ask in this turn has asked
        self._waiting.append((item, answered))
        return await answered

    async def get(self, path: str, *, timeout_s: float) -> dict[str, Any]:
        """A page of the server's, parsed; {} for whatever went wrong."""
        if self._closed:
            return {}
        try:
            timeout = aiohttp.ClientTimeout(total=timeout_s)
            async with self._pool().get(self._url + path, timeout=timeout, allow_redirects=False) as r:
                said = orjson.loads(await r.read()) if r.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError):
            return {}
        return said if is_dict(said) else {}

    async def close(self) -> None:
        """What is under way is broken off, and what waits is not sent: both are answered so."""
        self._closed = True
        for _, answered in self._waiting:
            _resolve(answered, _CLOSED)
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    # ---------------------------------------------------------------------------------------------------------- sending
    def _send(self) -> None:
        waiting, self._waiting = [w for w in self._waiting if not w[1].done()], []
        for _, same in groupby(waiting, key=lambda w: (w[0].run, w[0].step)):
            for batch in _split(list(same)):
                task = asyncio.get_running_loop().create_task(self._deliver(batch))
                self._sending.add(task)
                task.add_done_callback(lambda t, b=batch: self._sent(t, b))
                for _, answered in batch:
                    answered.add_done_callback(lambda _, b=batch, t=task: _abandoned(b) and t.cancel())

    def _sent(self, task: asyncio.Task[None], batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        self._sending.discard(task)
        for _, answered in batch:  # of a task that was cancelled before it began
            _resolve(answered, _CLOSED)

    async def _deliver(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        lost: Answer = (0, b"the connection to the search server was closed", 0.0)
        try:
            await (self._alone(*batch[0]) if len(batch) == 1 else self._together(batch))
            lost = (0, b"the search server's answer broke off", 0.0)
        except (aiohttp.ClientError, ValueError, IndexError) as e:  # the last two: no server of ours answered
            lost = (0, f"no connection to the search server ({type(e).__name__})".encode(), 0.0)
        finally:
            for _, answered in batch:
                _resolve(answered, lost)

    async def _alone(self, item: Item, answered: asyncio.Future[Answer]) -> None:
        headers = _headers(item) | ({"x-mmsr1-call": item.call} if item.call else {})
        # No redirects: the server is where the config says it is.
        async with self._pool().post(self._url + PATHS[item.op], data=item.body, headers=headers, allow_redirects=False) as r:
            _resolve(answered, (r.status, await r.read(), _retry_after(r.headers.get("retry-after"))))

    async def _together(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        calls = [{"op": i.op, "call": i.call, "body": orjson.Fragment(i.body)} for i, _ in batch]
        data = orjson.dumps({"calls": calls})
        headers = _headers(batch[0][0])
        async with self._pool().post(self._url + "/v1/batch", data=data, headers=headers, allow_redirects=False) as r:
            if r.status != 200:
                said, wait = await r.read(), _retry_after(r.headers.get("retry-after"))
                for _, answered in batch:
                    _resolve(answered, (r.status, said, wait))
                return
            rest = b""
            async for chunk in r.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    place, code, body = line.split(b" ", 2)
                    _resolve(batch[int(place)][1], (int(code), body, 1.0 if code == b"429" else 0.0))

    def _pool(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=30)
            # Environment proxies must not see loopback traffic; each call's own deadline is the only clock.
            timeout = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False, read_bufsize=2**20)
        return self._session


def _abandoned(batch: list[tuple[Item, asyncio.Future[Answer]]]) -> bool:
    """Nobody is left who waits, and some did not get their answer: the server need not go on either."""
    return all(f.done() for _, f in batch) and any(f.cancelled() for _, f in batch)


def _split(waiting: list[tuple[Item, asyncio.Future[Answer]]]) -> list[list[tuple[Item, asyncio.Future[Answer]]]]:
    """Batches in order, none over MAX_CALLS calls or MAX_BYTES (but for a single call that is larger by itself)."""
    out: list[list[tuple[Item, asyncio.Future[Answer]]]] = []
    size = 0
    for one in waiting:
        n = len(one[0].body)
        if not out or len(out[-1]) == MAX_CALLS or size + n > MAX_BYTES:
            out.append([])
            size = 0
        out[-1].append(one)
        size += n
    return out


def _resolve(answered: asyncio.Future[Answer], answer: Answer) -> None:
    if not answered.done():
        answered.set_result(answer)


def _headers(item: Item) -> dict[str, str]:
    # A header is ASCII; a run's name is what its owner likes.
    return {
        "content-type": "application/json",
        "x-mmsr1-run": quote(item.run, errors="replace"),
        "x-mmsr1-step": str(item.step),
    }


def _retry_after(header: str | None) -> float:
    return float(header) if header is not None and header.isdecimal() else 0.0
