"""Deadlines within deadlines, and the even rate: in virtual time, so that every moment is exact."""

from __future__ import annotations

import asyncio
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_time import run

from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.upstream.deadline import remaining, within
from megatron_mmsr1.search.upstream.limits import Pace
from megatron_mmsr1.trajectory import ToolStatus


def now() -> float:
    return asyncio.get_running_loop().time()


def test_the_innermost_deadline_counts_and_none_outlives_the_one_around_it() -> None:
    async def main() -> None:
        assert remaining() == math.inf
        async with within(10, "outer"):
            async with within(3, "inner"):
                assert remaining() == 3
            async with within(30, "inner"):
                assert remaining() == 10
            await asyncio.sleep(4)
            assert remaining() == 6
        assert remaining() == math.inf

    run(main())


@pytest.mark.parametrize(
    ("outer", "inner", "said"), [(10, 3, "inner"), (3, 10, "outer"), (3, 3, "outer"), (3, math.inf, "outer")]
)
def test_which_block_ends(outer: float, inner: float, said: str) -> None:
    """The shorter one; where both fall on one moment the outer one, and the inner block sees a cancellation."""
    seen: list[type[BaseException]] = []

    async def main() -> None:
        started = now()
        with pytest.raises(SearchFailure, match=f"{said} took longer than 3 s") as told:
            async with within(outer, "outer"), within(inner, "inner"):
                try:
                    await asyncio.sleep(100)
                except BaseException as e:
                    seen.append(type(e))
                    raise
        assert (told.value.status, now() - started) == (ToolStatus.TIMEOUT, 3)
        assert remaining() == math.inf
        await asyncio.sleep(1)  # no cancellation is left over

    run(main())
    assert seen == [asyncio.CancelledError]


def test_no_time_and_no_end() -> None:
    async def main() -> None:
        async with within(math.inf, "x"):
            await asyncio.sleep(10**6)
        with pytest.raises(SearchFailure, match="took longer than 0 s"):
            async with within(0, "x"):
                await asyncio.sleep(10)
        async with within(0, "x"):
            assert remaining() == 0  # what needs no waiting still gets done

    run(main())


def test_other_cancellations_and_time_outs_pass_through() -> None:
    async def block(error: Exception | None) -> None:
        async with within(10, "outer"), within(5, "inner"):
            if error is not None:
                raise error
            await asyncio.sleep(100)

    async def main() -> None:
        task = asyncio.create_task(block(None))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError, match="a socket's"):
            await block(TimeoutError("a socket's"))

    run(main())


def test_a_task_of_its_own_knows_the_deadline() -> None:
    async def main() -> None:
        async with within(5, "the call"):
            task = asyncio.create_task(asyncio.sleep(1, remaining()))
        assert await task == 5

    run(main())


# ----------------------------------------------------------------------------------------------------------------- pace
async def _starts(pace: Pace, n: int, every: float) -> list[float]:
    async def one() -> float:
        await pace.wait()
        return now()

    tasks = []
    for _ in range(n):
        tasks.append(asyncio.create_task(one()))
        await asyncio.sleep(every)
    return await asyncio.gather(*tasks)


@given(rate=st.floats(0.05, 500), n=st.integers(1, 60), every=st.sampled_from([0.0, 0.01, 1.0]))
def test_calls_start_evenly_in_order_and_at_the_rate(rate: float, n: int, every: float) -> None:
    starts = run(_starts(Pace("x", rate), n, every))
    assert starts == sorted(starts)
    assert all(b - a > 1 / rate - 1e-6 for a, b in pairwise(starts))
    assert starts[-1] - starts[0] <= (n - 1) * max(1 / rate, every) + 1e-6  # and no slower than it must


def test_a_moment_after_the_deadline_is_refused_at_once() -> None:
    async def main() -> None:
        pace, started = Pace("x", 1.0), now()
        await pace.wait()
        with pytest.raises(SearchFailure, match="1 times a second at most") as told:
            async with within(0.9, "the call"):
                await pace.wait()
        assert (told.value.status, now()) == (ToolStatus.RATE_LIMITED, started)
        await pace.wait()
        assert now() - started == pytest.approx(1.0)  # it took no moment from those who wait

    run(main())


def test_a_cancelled_wait_gives_its_moment_back() -> None:
    async def main() -> None:
        pace, started = Pace("x", 1.0), now()
        await pace.wait()
        task = asyncio.create_task(pace.wait())
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await pace.wait()
        assert now() - started == pytest.approx(1.0)

    run(main())
