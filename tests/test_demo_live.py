"""Answers of open pages: side by side, stopped by their page, never left running."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import pytest
from demo_fixtures import answered

from demo.live import Live
from demo.steps import Reply
from megatron_mmsr1.data.decode import ImageError
from serving.answering import Ask, Delta, Step
from serving.chat import Chat, Question


class Scripted:
    """An answerer that thinks, waits until it is let go, and answers. `closed` counts generators that came to their end."""

    def __init__(self, error: Exception | None = None) -> None:
        self.go = asyncio.Event()
        self.started = self.closed = 0
        self.error = error

    async def answer(self, ask: Ask) -> AsyncIterator[Step]:
        self.started += 1
        try:
            yield Delta("reasoning", "hm", 1)
            await self.go.wait()
            if self.error is not None:
                raise self.error
            yield answered("yes")
        finally:
            self.closed += 1


def asks(n: int) -> list[Ask]:
    return [Ask(Chat([Question("?")])) for _ in range(n)]


async def until(done: Any) -> None:
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0.01)


async def collect(live: Live, session: str, replies: list[Reply]) -> None:
    async for _ in live.follow(session, asks(len(replies)), replies):
        pass


async def test_answers_run_side_by_side() -> None:
    scripted, replies = Scripted(), [Reply(), Reply(), Reply()]
    live = Live(cast(Any, scripted), 10)
    task = asyncio.create_task(collect(live, "a", replies))
    await until(lambda: all(r.steps for r in replies))
    assert live.running == 3
    scripted.go.set()
    await task
    assert [r.text for r in replies] == ["yes"] * 3 and live.running == 0 and scripted.closed == 3


async def test_stop_ends_the_work_of_one_page_only() -> None:
    scripted, mine, other = Scripted(), [Reply(), Reply()], [Reply()]
    live = Live(cast(Any, scripted), 10)
    tasks = [asyncio.create_task(collect(live, "mine", mine)), asyncio.create_task(collect(live, "other", other))]
    await until(lambda: scripted.started == 3)
    live.stop("mine")
    live.stop("nobody")
    await tasks[0]
    assert all(r.stopped for r in mine) and scripted.closed == 2 and live.running == 1
    scripted.go.set()
    await tasks[1]
    assert other[0].text == "yes"


async def test_who_stops_listening_stops_the_work() -> None:
    scripted, reply = Scripted(), Reply()
    live = Live(cast(Any, scripted), 10)
    async with aclosing(cast(Any, live.follow("a", asks(1), [reply]))) as news:
        async for _ in news:
            break
    assert scripted.closed == scripted.started and live.running == 0 and reply.stopped


async def test_more_than_there_is_room_for_waits_and_can_be_stopped_while_it_waits() -> None:
    scripted, replies = Scripted(), [Reply(), Reply(), Reply()]
    live = Live(cast(Any, scripted), 1)
    tasks = [asyncio.create_task(collect(live, s, [r])) for s, r in zip("abc", replies, strict=True)]
    await until(lambda: live.running == 3)
    assert scripted.started == 1
    live.stop("b")
    await tasks[1]
    assert replies[1].stopped and scripted.started == 1
    scripted.go.set()
    await asyncio.gather(*tasks)
    assert replies[2].text == "yes" and scripted.closed == scripted.started == 2


async def test_a_picture_that_is_none_is_the_persons_a_defect_is_ours() -> None:
    picture, defect = Scripted(ImageError("no picture")), Scripted(RuntimeError("a defect"))
    picture.go.set()
    defect.go.set()
    reply = Reply()
    await collect(Live(cast(Any, picture), 1), "a", [reply])
    assert reply.failed == "no picture" and not reply.stopped
    live = Live(cast(Any, defect), 1)
    with pytest.raises(RuntimeError, match="a defect"):
        await collect(live, "a", [Reply()])
    assert live.running == 0
