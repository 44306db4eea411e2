"""Answers being made for open pages: several at once, each stopped by its page, by the page's end, or by nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import cast

from demo.steps import Reply
from megatron_mmsr1.data.decode import ImageError
from serving.answering import Answerer, Ask, Step

FRAME_S = 0.05  # a page is drawn anew at most so often: what came meanwhile is shown together


class Live:
    """`places`: answers made at once, over all pages; more wait. Belongs to the answerer's event loop."""

    def __init__(self, answerer: Answerer, places: int):
        self.answerer = answerer
        self._places = asyncio.Semaphore(places)
        self._tasks: dict[str, set[asyncio.Task[None]]] = {}

    @property
    def running(self) -> int:
        return sum(len(tasks) for tasks in self._tasks.values())

    def stop(self, session: str) -> None:
        """End all that a page has running: engine requests are aborted, tools' calls end."""
        for task in self._tasks.get(session, ()):
            task.cancel()

    async def follow(self, session: str, asks: Sequence[Ask], replies: Sequence[Reply]) -> AsyncIterator[None]:
        """Make the answers side by side, each fed into its reply; yields when there is something new to show. Whoever stops
        iterating stops the work."""
        news = asyncio.Event()
        tasks = [asyncio.create_task(self._make(a, r, news)) for a, r in zip(asks, replies, strict=True)]
        mine = self._tasks.setdefault(session, set())
        mine.update(tasks)
        for task in tasks:
            task.add_done_callback(lambda _: news.set())
        try:
            while not all(t.done() for t in tasks):
                await news.wait()
                news.clear()
                yield
                await asyncio.sleep(FRAME_S)
            yield
        finally:
            for task in tasks:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            mine.difference_update(tasks)
            if not mine:
                self._tasks.pop(session, None)
            for r in replies:
                r.end()
        for result in done:
            if isinstance(result, Exception):  # a defect of ours
                raise result

    async def _make(self, ask: Ask, reply: Reply, news: asyncio.Event) -> None:
        try:
            async with self._places, aclosing(cast(AsyncGenerator[Step], self.answerer.answer(ask))) as steps:
                async for step in steps:
                    reply.feed(step)
                    news.set()
        except ImageError as e:
            reply.failed = str(e)
        finally:
            reply.end()
