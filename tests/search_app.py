"""The search server's app on a real socket, in the test's own event loop, over backends that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import uvicorn

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.procs.ports import bind
from megatron_mmsr1.search.backends.interfaces import ImageResult, Page, TextResult
from megatron_mmsr1.search.server import app as app_module
from megatron_mmsr1.search.server.app import SearchApp
from megatron_mmsr1.search.server.calls import Calls
from megatron_mmsr1.search.server.compose import Backends
from megatron_mmsr1.search.store.store import Store


class Played:
    """Any of the four kinds. `asked`: what it was asked, in order; `peak`: the most at once."""

    def __init__(self, name: str, play: Callable[..., Awaitable[Any]], local: bool = False):
        self.name, self.version, self.local, self._play = name, "1", local, play
        self.asked: list[Any] = []
        self.in_flight = self.peak = 0
        self.closed = False

    async def _ask(self, what: Any, *more: Any) -> Any:
        self.asked.append(what)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            return await self._play(what, *more)
        finally:
            self.in_flight -= 1

    async def close(self) -> None:
        self.closed = True


class PlayedText(Played):
    async def search(self, query: str, k: int) -> Sequence[TextResult]:
        return await self._ask(query, k)


class PlayedImage(Played):
    async def search(self, image: bytes, k: int) -> Sequence[ImageResult]:
        return await self._ask(image, k)


class PlayedReader(Played):
    async def read(self, url: str) -> Page:
        return await self._ask(url)


class PlayedSummariser(Played):
    async def summarise(self, query: str, page_text: str) -> str:
        return await self._ask((query, page_text))


@dataclass
class Serving:
    url: str
    app: SearchApp
    server: uvicorn.Server
    ended: asyncio.Task[None] = field(repr=False)

    @property
    def calls(self) -> Calls:
        return self.app._calls

    async def until_idle(self) -> None:
        """Until no call is being answered."""
        async with asyncio.timeout(20):
            while self.calls.in_flight:
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self.server.should_exit = True
        await self.ended


@asynccontextmanager
async def serving(cfg: SearchConfig, path: Path | None = None, backends: Backends | None = None) -> AsyncIterator[Serving]:
    """`backends`: instead of those that the config names."""
    opened = (backends, None if path is None else Store(path))
    if backends is None:
        app = SearchApp(cfg, path)
    else:
        with patch.object(app_module, "open_all", lambda *_: opened):
            app = SearchApp(cfg, path)
    settings = uvicorn.Config(app.asgi(), log_level="error", access_log=False, lifespan="on", timeout_graceful_shutdown=10)
    server = uvicorn.Server(settings)
    with bind("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        s = Serving(f"http://127.0.0.1:{port}", app, server, asyncio.create_task(server._serve([sock])))
        try:
            while not server.started and not s.ended.done():
                await asyncio.sleep(0.005)
            yield s
        finally:
            await s.stop()
