"""The throttle in front of the tools: how many calls at once, and what an outage does to them. In virtual time, but for one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import run

from megatron_mmsr1.config import RolloutConfig
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.rollout import throttle as throttle_module
from megatron_mmsr1.rollout.throttle import ENOUGH, LATEST, PROBE_S, Throttle
from megatron_mmsr1.search.wire import ImageReply, TextReply
from megatron_mmsr1.trajectory import ToolStatus as S

DOWN = [S.TIMEOUT, S.RATE_LIMITED, S.UPSTREAM_ERROR]


def now() -> float:
    return asyncio.get_running_loop().time()


class Tool:
    """Answers after `seconds`, with what `says` gives for the moment of the answer. `asked`: when each call came."""

    def __init__(self, says: Callable[[float], S], seconds: float = 0.5):
        self.says, self.seconds = says, seconds
        self.began = now()
        self.asked: list[float] = []
        self.answered: list[tuple[float, S]] = []
        self.in_flight = self.peak = 0

    async def text(self, query: str, k: int = 5, *, call: str = "") -> TextReply:
        self.asked.append(now() - self.began)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.in_flight -= 1
        status = self.says(now() - self.began)
        self.answered.append((now() - self.began, status))
        return TextReply(status=status, detail=f"{query} {call}")

    async def image(self, data: bytes, k: int = 5, *, call: str = "") -> ImageReply:
        await self.text(repr(data), k, call=call)
        return ImageReply(status=self.answered[-1][1])


def out_between(start: float, end: float) -> Callable[[float], S]:
    return lambda t: S.UPSTREAM_ERROR if start <= t < end else S.OK


def throttled(tool: Tool, **rollout: Any) -> Throttle:
    return Throttle(tool, RolloutConfig(**rollout))


async def asks(throttle: Throttle, n: int, every: float = 0.0) -> list[TextReply]:
    async def one(i: int) -> TextReply:
        await asyncio.sleep(i * every)
        return await throttle.text(f"q{i}", call=f"c{i}")

    return await asyncio.gather(*(one(i) for i in range(n)))


@given(st.integers(1, 80), st.integers(1, 12))
@settings(max_examples=examples(30))
def test_so_many_at_once_and_no_fewer(n: int, at_once: int) -> None:
    async def main() -> None:
        tool = Tool(lambda _: S.OK)
        throttle = throttled(tool, tool_concurrency=at_once)
        assert [r.detail for r in await asks(throttle, n)] == [f"q{i} c{i}" for i in range(n)]  # each gets its own answer
        assert tool.peak == min(n, at_once)
        assert (throttle.pauses, throttle.asked_again, throttle.paused_s) == (0, 0, 0.0)
        assert (await throttle.image(b"x", call="c")).status is S.OK

    run(main())


# ------------------------------------------------------------------------------------------------------- when it closes
@pytest.mark.parametrize("failed", range(0, 20))
def test_a_few_calls_say_nothing_and_a_share_at_the_limit_is_no_outage(failed: int) -> None:
    async def main() -> None:
        tool = Tool(lambda t: S.OK)
        throttle = throttled(tool, pause_above=0.25, tool_concurrency=1)
        plan = [S.OK] * (20 - failed) + [S.TIMEOUT] * failed  # the failures last: at each of them the share is the highest yet
        tool.says = lambda _: plan[len(tool.answered)]
        paused = []
        for _ in range(20):
            waiting = asyncio.create_task(throttle.text("q"))
            await asyncio.wait([waiting], timeout=PROBE_S * 0.9)
            paused.append(throttle.paused)
            if throttle.paused:
                waiting.cancel()
                break
        shares = [sum(s is S.TIMEOUT for s in plan[: n + 1]) / (n + 1) for n in range(len(paused))]
        assert paused == [n + 1 >= ENOUGH and share > 0.25 for n, share in enumerate(shares)]

    run(main())


def test_only_the_latest_calls_count() -> None:
    async def main() -> None:
        tool = Tool(lambda _: S.OK)
        throttle = throttled(tool, pause_above=0.5, tool_concurrency=1)
        await asks(throttle, 10 * LATEST)
        tool.says = lambda _: S.UPSTREAM_ERROR
        waiting = [asyncio.create_task(throttle.text("q")) for _ in range(LATEST)]
        await asyncio.sleep((LATEST // 2 + 1) * tool.seconds + 0.1)
        assert throttle.paused and sum(s is S.UPSTREAM_ERROR for _, s in tool.answered) == LATEST // 2 + 1
        for w in waiting:
            w.cancel()

    run(main())


@pytest.mark.parametrize("status", [S.BUDGET, S.REFUSED, S.EMPTY])
def test_what_waiting_does_not_mend_never_closes_it(status: S) -> None:
    async def main() -> None:
        tool = Tool(lambda _: status)
        throttle = throttled(tool, pause_above=0.0)
        assert {r.status for r in await asks(throttle, 300)} == {status}
        assert (throttle.pauses, len(tool.asked)) == (0, 300)

    run(main())


def test_a_threshold_of_1_never_pauses() -> None:
    async def main() -> None:
        throttle = throttled(Tool(lambda _: S.UPSTREAM_ERROR), pause_above=1.0)
        assert {r.status for r in await asks(throttle, 300)} == {S.UPSTREAM_ERROR}
        assert throttle.pauses == 0

    run(main())


# ----------------------------------------------------------------------------------------------------- while it is closed
@pytest.mark.long
@pytest.mark.parametrize("status", DOWN)
@pytest.mark.parametrize("at_once", [1, 4, 500])
def test_an_outage_costs_time_and_a_window_of_calls(status: S, at_once: int) -> None:
    """300 calls, most of which wait for their place when the throttle closes: not one of them goes through but as a probe."""

    async def main() -> None:
        tool = Tool(lambda t: status if t < 60 else S.OK)
        throttle = throttled(tool, tool_concurrency=at_once)
        closed: list[float] = []
        throttle.on_change = lambda: closed.append(now() - tool.began)
        got = [r.status for r in await asks(throttle, 300)]
        shut, opened = closed
        # Those whose failure closed the throttle had it before anyone could know; no other failure is seen by anybody.
        assert got.count(status) == ENOUGH - 1 and set(got) == {status, S.OK}
        assert (throttle.pauses, throttle.paused) == (1, False)
        assert throttle.paused_s == pytest.approx(opened - shut)
        assert 60 <= opened < 60 + PROBE_S + tool.seconds + 0.01
        probes = [t for t in tool.asked if shut < t < opened]
        assert len(probes) >= 30
        assert min(b - a for a, b in zip([shut, *probes], probes, strict=False)) >= PROBE_S - 1e-6

    run(main())


def test_a_failure_of_before_the_door_opened_is_asked_again_though_it_comes_after() -> None:
    """Slow calls that were on their way all through the outage: they tell of it when it is over."""

    async def main() -> None:
        tool = Tool(lambda t: S.UPSTREAM_ERROR if t < 10 else S.OK)
        throttle = throttled(tool, tool_concurrency=200)
        slow = Tool(lambda _: S.TIMEOUT, seconds=20.0)
        fast, tool_text = asyncio.create_task(asks(throttle, 40)), tool.text

        async def text(query: str, k: int = 5, *, call: str = "") -> TextReply:
            return await (slow.text if query == "slow" and now() - tool.began < 10 else tool_text)(query, k, call=call)

        tool.text = text  # type: ignore[method-assign]
        late = await asyncio.gather(*(throttle.text("slow") for _ in range(100)))
        assert {r.status for r in late} == {S.OK}
        assert throttle.pauses == 1  # nor do they close it again
        await fast

    run(main())


@pytest.mark.parametrize("status", [S.OK, S.EMPTY, S.REFUSED, S.BUDGET])
def test_the_first_probe_that_is_answered_opens_it(status: S) -> None:
    async def main() -> None:
        tool = Tool(lambda t: S.UPSTREAM_ERROR if t < 5 else status)
        throttle = throttled(tool)
        got = await asks(throttle, 200)
        assert not throttle.paused and {r.status for r in got} == {S.UPSTREAM_ERROR, status}
        assert now() - tool.began < 5 + 2 * (PROBE_S + tool.seconds)

    run(main())


def test_a_probe_that_hangs_is_the_only_one() -> None:
    async def main() -> None:
        tool = Tool(lambda t: S.TIMEOUT if t < 100 else S.OK)
        throttle = throttled(tool)
        waiting = asyncio.create_task(asks(throttle, 50))
        await asyncio.sleep(1)
        assert throttle.paused
        tool.seconds, before = 30.0, len(tool.asked)
        await asyncio.sleep(65)
        assert (tool.in_flight, len(tool.asked) - before) == (1, 3)
        await waiting

    run(main())


def test_one_pause_after_another_adds_up() -> None:
    async def main() -> None:
        tool = Tool(lambda t: S.UPSTREAM_ERROR if t % 40 > 20 else S.OK, seconds=0.1)
        throttle, turns = throttled(tool, tool_concurrency=8), list[float]()
        throttle.on_change = lambda: turns.append(now())
        await asks(throttle, 400, every=0.5)
        assert throttle.pauses == 5 and len(turns) == 10
        assert throttle.paused_s == pytest.approx(sum(b - a for a, b in zip(turns[::2], turns[1::2], strict=True)))

    run(main())


def test_the_time_of_a_pause_is_counted_while_it_lasts() -> None:
    async def main() -> None:
        tool = Tool(lambda _: S.UPSTREAM_ERROR)
        throttle, shut = throttled(tool), list[float]()
        throttle.on_change = lambda: shut.append(now())
        waiting = asyncio.create_task(asks(throttle, 50))
        await asyncio.sleep(100)
        assert throttle.paused and throttle.failing == 1.0
        assert throttle.paused_s == pytest.approx(now() - shut[0])
        waiting.cancel()

    run(main())


def test_the_limit_of_a_pause_ends_the_run_with_a_word() -> None:
    async def main() -> None:
        tool = Tool(lambda _: S.UPSTREAM_ERROR)
        throttle = throttled(tool, pause_limit_s=90.0)
        with pytest.raises(RunError, match=r"rollout\.pause_limit_s=90 s.*mmsr1 search stats.*same command"):
            await asks(throttle, 50)
        assert 90 < now() - tool.began < 90 + 2 * (PROBE_S + tool.seconds)

    run(main())


# ------------------------------------------------------------------------------------------------------- cancelled, raised
@given(st.integers(0, 2**32), st.sampled_from([1, 3, 100]), st.floats(0.01, 4.0))
@settings(max_examples=examples(60))
def test_whatever_is_cancelled_when_the_others_get_through(seed: int, at_once: int, seconds: float) -> None:
    """Outages come and go, calls come and are given up: who stays is answered, and the throttle stands open at the end. (The
    loop raises where everything waits for nothing.)"""
    rng = random.Random(seed)
    outages = [(s, s + rng.uniform(0, 30)) for s in (rng.uniform(0, 100) for _ in range(3))]

    async def main() -> None:
        tool = Tool(lambda t: S.UPSTREAM_ERROR if any(a <= t < b for a, b in outages) else S.OK, seconds)
        throttle = throttled(tool, tool_concurrency=at_once)

        async def one() -> S | None:
            await asyncio.sleep(rng.uniform(0, 120))
            try:
                patience = rng.choice([None, rng.uniform(0, 20)])
                async with asyncio.timeout(patience):
                    return (await throttle.text("q")).status
            except TimeoutError:
                return None

        got = await asyncio.gather(*(one() for _ in range(80)))
        assert set(got) <= {S.OK, S.UPSTREAM_ERROR, None}
        assert (await throttle.text("last")).status is S.OK
        assert not throttle.paused and tool.in_flight == 0 and tool.peak <= at_once

    run(main())


def test_a_cancelled_probe_gives_its_turn_back() -> None:
    async def main() -> None:
        tool = Tool(lambda t: S.UPSTREAM_ERROR if t < 30 else S.OK, seconds=0.5)
        throttle = throttled(tool)
        calls = [asyncio.create_task(throttle.text("q")) for _ in range(60)]
        await asyncio.sleep(0.6)
        assert throttle.paused
        while now() - tool.began < 29:  # whoever is the probe, asleep or asking, goes away
            await asyncio.sleep(0.45)
            alive = [c for c in calls if not c.done()]
            if len(alive) > 2:
                alive[0].cancel()
        got = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(g, TextReply) and g.status is S.OK for g in got) >= 2
        assert not throttle.paused

    run(main())


def test_a_defect_behind_the_door_is_not_swallowed_and_gives_the_turn_back() -> None:
    async def main() -> None:
        tool = Tool(lambda t: S.UPSTREAM_ERROR)
        throttle = throttled(tool)
        calls = [asyncio.create_task(throttle.text("q")) for _ in range(30)]
        await asyncio.sleep(0.6)

        def broken(_: float) -> S:
            tool.says = lambda _: S.OK
            raise ZeroDivisionError

        tool.says = broken
        got = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(g, ZeroDivisionError) for g in got) == 1
        assert not throttle.paused

    run(main())


async def test_the_time_between_probes_is_a_constant_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the real clock."""
    monkeypatch.setattr(throttle_module, "PROBE_S", 0.01)
    tool = Tool(lambda _: S.UPSTREAM_ERROR, seconds=0.0)
    throttle = throttled(tool)
    waiting = asyncio.create_task(asks(throttle, 40))
    while len(tool.asked) < 45:
        await asyncio.sleep(0.01)
    assert throttle.paused
    tool.says = lambda _: S.OK
    assert S.OK in {r.status for r in await waiting}
