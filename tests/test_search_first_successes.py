"""K successes out of many candidates, in virtual time."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from virtual_time import run

from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.upstream.deadline import first_successes, within
from megatron_mmsr1.trajectory import ToolStatus as S

DOWN = SearchFailure(S.UPSTREAM_ERROR, "HTTP 500")


@given(st.lists(st.floats(0.0, 3.0) | st.none(), max_size=12), st.integers(0, 5), st.floats(0.5, 8.0))
def test_a_harvest_holds_what_was_ripe_in_time(times: list[float | None], k: int, deadline_s: float) -> None:
    """None fails at once. Never more than `k` at a time or in the end, nothing runs on, nothing is tried twice."""

    async def main() -> None:
        busy = peak = 0
        tried: list[int] = []

        async def attempt(rank: int) -> int:
            nonlocal busy, peak
            tried.append(rank)
            busy += 1
            peak = max(peak, busy)
            try:
                if (seconds := times[rank]) is None:
                    raise DOWN
                await asyncio.sleep(seconds)
                return rank
            finally:
                busy -= 1

        began = asyncio.get_running_loop().time()
        async with within(deadline_s, "the first_successes"):
            got = await first_successes(range(len(times)), k, attempt)
        assert busy == 0 and peak <= k and sorted(set(tried)) == sorted(tried)
        assert all(rank == value and times[rank] is not None for rank, value in got.hits.items())
        assert tried == list(range(len(tried)))
        took = asyncio.get_running_loop().time() - began
        assert took <= deadline_s
        late = len(tried) - len(got.hits) - sum(times[r] is None for r in tried)
        assert late == sum(f.status is S.TIMEOUT for f in got.failures)
        if not late:  # then the time was not what set the number
            assert len(got.hits) == min(k, sum(t is not None for t in times))

    run(main())
