"""The sending side of an exchange: server-sent events that never fall silent for long, or one JSON body."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
from starlette.types import Send

from serving.gateway.completion import COMMENT

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy that collects a stream would spoil it
]


class Out:
    """`started`: the status is sent, and errors are events from now on; `spoke`: events were sent, not just comments."""

    def __init__(self, send: Send):
        self._send = send
        self._lock = asyncio.Lock()  # two tasks write: the answer's, and the one that keeps the connection alive
        self._last = time.monotonic()
        self.started = self.spoke = self._ended = False

    async def write(self, data: bytes, *, speaks: bool = True, last: bool = False) -> None:
        """`data`: whole events."""
        async with self._lock:
            if self._ended:
                return
            if not self.started:
                self.started = True
                await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            self.spoke = self.spoke or speaks
            self._ended = last
            await self._send({"type": "http.response.body", "body": data, "more_body": not last})
            self._last = time.monotonic()

    async def json(self, body: dict[str, Any]) -> None:
        data = orjson.dumps(body)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        self.started = self._ended = True
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": data})

    @contextlib.asynccontextmanager
    async def alive(self, silence_s: float, *, on: bool) -> AsyncIterator[None]:
        """Meanwhile a comment is sent after each `silence_s` seconds without a word."""
        if not on:
            yield
            return
        task = asyncio.create_task(self._comments(silence_s))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))

    async def _comments(self, silence_s: float) -> None:
        while True:
            await asyncio.sleep(max(0.001, self._last + silence_s - time.monotonic()))
            if time.monotonic() - self._last >= silence_s:
                await self.write(COMMENT, speaks=False)
