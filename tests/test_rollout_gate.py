"""The door in front of the tools: how many calls at once, and what an outage does to them. In virtual time, but for one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import run

from megatron_mmsr1.config import RolloutConfig
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.rollout import gate as gate_module
from megatron_mmsr1.rollout.gate import ENOUGH, LATEST, PROBE_S, Gate
from megatron_mmsr1.search.replies import ImageReply, TextReply
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


def door(tool: Tool, **rollout: Any) -> Gate:
    return Gate(tool, RolloutConfig(**rollout))


async def asks(gate: Gate, n: int, every: float = 0.0) -> list[TextReply]:
    async def one(i: int) -> TextReply:
        await asyncio.sleep(i * every)
        return await gate.text(f"q{i}", call=f"c{i}")

    return await asyncio.gather(*(one(i) for i in range(n)))


@given(st.integers(1, 80), st.integers(1, 12))
@settings(max_examples=30)
def test_so_many_at_once_and_no_fewer(n: int, at_once: int) -> None:
    async def main() -> None:
        tool = Tool(lambda _: S.OK)
        gate = door(tool, tool_concurrency=at_once)
        assert [r.detail for r in await asks(gate, n)] == [f"q{i} c{i}" for i in range(n)]  # each gets its own answer
        assert tool.peak == min(n, at_once)
        assert (gate.pauses, gate.asked_again, gate.paused_s) == (0, 0, 0.0)
        assert (await gate.image(b"x", call="c")).status is S.OK

    run(main())


# ------------------------------------------------------------------------------------------------------- when it closes
@pytest.mark.parametrize("failed", range(0, 20))
def test_a_few_calls_say_nothing_and_a_share_at_the_limit_is_no_outage(failed: int) -> None:
    async def main() -> None:
        tool = Tool(lambda t: S.OK)
        gate = door(tool, pause_above=0.25, tool_concurrency=1)
        plan = [S.OK] * (20 - failed) + [S.TIMEOUT] * failed  # the failures last: at each of them the share is the highest yet
        tool.says = lambda _: plan[len(tool.answered)]
        paused = []
        for _ in range(20):
            waiting = asyncio.create_task(gate.text("q"))
            await asyncio.wait([waiting], timeout=PROBE_S * 0.9)
            paused.append(gate.paused)
            if gate.paused:
                waiting.cancel()
                break
        shares = [sum(s is S.TIMEOUT for s in plan[: n + 1]) / (n + 1) for n in range(len(paused))]
        assert paused == [n + 1 >= ENOUGH and share > 0.25 for n, share in enumerate(shares)]

    run(main())


def test_only_the_latest_calls_count() -> None:
    async def main() -> None:
        tool = Tool(lambda _: S.OK)
        gate = door(tool, pause_above=0.5, tool_concurrency=1)
        await asks(gate, 10 * LATEST)
        tool.says = lambda _: S.UPSTREAM_ERROR
        waiting = [asyncio.create_task(gate.text("q")) for _ in range(LATEST)]
        await asyncio.sleep((LATEST // 2 + 1) * tool.seconds + 0.1)
        assert gate.paused and sum(s is S.UPSTREAM_ERROR for _, s in tool.answered) == LATEST // 2 + 1
        for w in waiting:
            w.cancel()

    run(main())


@pytest.mark.parametrize("status", [S.BUDGET, S.REFUSED, S.EMPTY])
def test_what_waiting_does_not_mend_never_closes_it(status: S) -> None:
    async def main() -> None:
        tool = Tool(lambda _: status)
        gate = door(tool, pause_above=0.0)
        assert {r.status for r in await asks(gate, 300)} == {status}
        assert (gate.pauses, len(tool.asked)) == (0, 300)

    run(main())


def test_a_threshold_of_1_never_pauses() -> None:
    async def main() -> None:
        gate = door(Tool(lambda _: S.UPSTREAM_ERROR), pause_above=1.0)
        assert {r.status for r in await asks(gate, 300)} == {S.UPSTREAM_ERROR}
        assert gate.pauses == 0

    run(main())


# --------------------------------------------------------------------------------------------------- behind a closed door
@pytest.mark.parametrize("status", DOWN)
@pytest.mark.parametrize("at_once", [1, 4, 500])
def test_an_outage_costs_time_and_a_window_of_calls(status: S, at_once: int) -> None:
    """300 calls, most of which wait for their place when the door closes: not one of them goes through but as a probe."""

    async def main() -> None:
        tool = Tool(lambda t: status if t < 60 else S.OK)
        gate = door(tool, tool_concurrency=at_once)
        closed: list[float] = []
        gate.on_change = lambda: closed.append(now() - tool.began)
        got = [r.status for r in await asks(gate, 300)]
        shut, opened = closed
        # Those whose failure closed the door had it before anyone could know; no other failure is seen by anybody.
        assert got.count(status) == ENOUGH - 1 and set(got) == {status, S.OK}
        assert (gate.pauses, gate.paused) == (1, False)
        assert gate.paused_s == pytest.approx(opened - shut)
        assert 60 <= opened < 60 + PROBE_S + tool.seconds + 0.01
        probes = [t for t in tool.asked if shut < t < opened]
        assert len(probes) >= 30
        assert min(b - a for a, b in zip([shut, *probes], probes, strict=False)) >= PROBE_S - 1e-6

    run(main())


def test_a_failure_of_before_the_door_opened_is_asked_again_though_it_comes_after() -> None:
    """Slow calls that were on their way all through the outage: they tell of it when it is over."""

    async def main() -> None:
        tool = Tool(lambda t: S.UPSTREAM_ERROR if t < 10 else S.OK)
        gate = door(tool, tool_concurrency=200)
        slow = Tool(lambda _: S.TIMEOUT, seconds=20.0)
        fast, tool_text = asyncio.create_task(asks(gate, 40)), tool.text

        async def text(query: str, k: int = 5, *, call: str = "") -> TextReply:
            return await (slow.text if query == "slow" and now() - tool.began < 10 else tool_text)(query, k, call=call)

        tool.text = text  # type: ignore[method-assign]
        late = await asyncio.gather(*(gate.text("slow") for _ in range(100)))
        assert {r.status for r in late} == {S.OK}
        assert gate.pauses == 1  # nor do they close it again
        await fast

    run(main())


@pytest.mark.parametrize("status", [S.OK, S.EMPTY, S.REFUSED, S.BUDGET])
def test_the_first_probe_that_is_answered_opens_it(status: S) -> None:
    async def main() -> None:
        tool = Tool(lambda t: S.UPSTREAM_ERROR if t < 5 else status)
        gate = door(tool)
        got = await asks(gate, 200)
        assert not gate.paused and {r.status for r in got} == {S.UPSTREAM_ERROR, status}
        assert now() - tool.began < 5 + 2 * (PROBE_S + tool.seconds)

    run(main())


def test_a_probe_that_hangs_is_the_only_one() -> None:
    async def main() -> None:
        tool = Tool(lambda t: S.TIMEOUT if t < 100 else S.OK)
        gate = door(tool)
        waiting = asyncio.create_task(asks(gate, 50))
        await asyncio.sleep(1)
        assert gate.paused
        tool.seconds, before = 30.0, len(tool.asked)
        await asyncio.sleep(65)
        assert (tool.in_flight, len(tool.asked) - before) == (1, 3)
        await waiting

    run(main())


def test_one_pause_after_another_adds_up() -> None:
    async def main() -> None:
        tool = Tool(lambda t: S.UPSTREAM_ERROR if t % 40 > 20 else S.OK, seconds=0.1)
        gate, turns = door(tool, tool_concurrency=8), list[float]()
        gate.on_change = lambda: turns.append(now())
        await asks(gate, 400, every=0.5)
        assert gate.pauses == 5 and len(turns) == 10
        assert gate.paused_s == pytest.approx(sum(b - a for a, b in zip(turns[::2], turns[1::2], strict=True)))

    run(main())


def test_the_time_of_a_pause_is_counted_while_it_lasts() -> None:
    async def main() -> None:
        tool = Tool(lambda _: S.UPSTREAM_ERROR)
        gate, shut = door(tool), list[float]()
        gate.on_change = lambda: shut.append(now())
        waiting = asyncio.create_task(asks(gate, 50))
        await asyncio.sleep(100)
        assert gate.paused and gate.failing == 1.0
        assert gate.paused_s == pytest.approx(now() - shut[0])
        waiting.cancel()

    run(main())


def test_the_limit_of_a_pause_ends_the_run_with_a_word() -> None:
    async def main() -> None:
        tool = Tool(lambda _: S.UPSTREAM_ERROR)
        gate = door(tool, pause_limit_s=90.0)
        with pytest.raises(RunError, match=r"rollout\.pause_limit_s=90 s.*mmsr1 search stats.*same command"):
            await asks(gate, 50)
        assert 90 < now() - tool.began < 90 + 2 * (PROBE_S + tool.seconds)

    run(main())


# ------------------------------------------------------------------------------------------------------- cancelled, raised
@given(st.integers(0, 2**32), st.sampled_from([1, 3, 100]), st.floats(0.01, 4.0))
@settings(max_examples=60)
def test_whatever_is_cancelled_when_the_others_get_through(seed: int, at_once: int, seconds: float) -> None:
    """Outages come and go, calls come and are given up: who stays is answered, and the door stands open at the end. (The
    loop raises where everything waits for nothing.)"""
    rng = random.Random(seed)
    outages = [(s, s + rng.uniform(0, 30)) for s in (rng.uniform(0, 100) for _ in range(3))]

    async def main() -> None:
        tool = Tool(lambda t: S.UPSTREAM_ERROR if any(a <= t < b for a, b in outages) else S.OK, seconds)
        gate = door(tool, tool_concurrency=at_once)

        async def one() -> S | None:
            await asyncio.sleep(rng.uniform(0, 120))
            try:
                patience = rng.choice([None, rng.uniform(0, 20)])
                async with asyncio.timeout(patience):
                    return (await gate.text("q")).status
            except TimeoutError:
                return None

        got = await asyncio.gather(*(one() for _ in range(80)))
        assert set(got) <= {S.OK, S.UPSTREAM_ERROR, None}
        assert (await gate.text("last")).status is S.OK
        assert not gate.paused and tool.in_flight == 0 and tool.peak <= at_once

    run(main())


def test_a_cancelled_probe_gives_its_turn_back() -> None:
    async def main() -> None:
        tool = Tool(lambda t: S.UPSTREAM_ERROR if t < 30 else S.OK, seconds=0.5)
        gate = door(tool)
        calls = [asyncio.create_task(gate.text("q")) for _ in range(60)]
        await asyncio.sleep(0.6)
        assert gate.paused
        while now() - tool.began < 29:  # whoever is the probe, asleep or asking, goes away
            await asyncio.sleep(0.45)
            alive = [c for c in calls if not c.done()]
            if len(alive) > 2:
                alive[0].cancel()
        got = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(g, TextReply) and g.status is S.OK for g in got) >= 2
        assert not gate.paused

    run(main())


def test_a_defect_behind_the_door_is_not_swallowed_and_gives_the_turn_back() -> None:
    async def main() -> None:
        tool = Tool(lambda t: S.UPSTREAM_ERROR)
        gate = door(tool)
        calls = [asyncio.create_task(gate.text("q")) for _ in range(30)]
        await asyncio.sleep(0.6)

        def broken(_: float) -> S:
            tool.says = lambda _: S.OK
            raise ZeroDivisionError

        tool.says = broken
        got = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(g, ZeroDivisionError) for g in got) == 1
        assert not gate.paused

    run(main())


async def test_the_time_between_probes_is_a_constant_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the real clock."""
    monkeypatch.setattr(gate_module, "PROBE_S", 0.01)
    tool = Tool(lambda _: S.UPSTREAM_ERROR, seconds=0.0)
    gate = door(tool)
    waiting = asyncio.create_task(asks(gate, 40))
    while len(tool.asked) < 45:
        await asyncio.sleep(0.01)
    assert gate.paused
    tool.says = lambda _: S.OK
    assert S.OK in {r.status for r in await waiting}
