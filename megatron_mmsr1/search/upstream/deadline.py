"""One clock a call: the deadline that is set at the server's entrance is what every stage below it, and every retry, looks at.

A context variable carries it, so that a call joined with its twins runs under the deadline of whoever came first.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.trajectory import ToolStatus

_end: ContextVar[float | None] = ContextVar("search deadline", default=None)


def remaining() -> float:
    """Seconds until the innermost deadline; infinite outside of any, never below 0."""
    end = _end.get()
    return math.inf if end is None else max(0.0, end - asyncio.get_running_loop().time())


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncGenerator[None]:
    """End the block after `seconds`, or at the deadline around it if that comes first: SearchFailure(timeout) says `what`.

    Where two deadlines fall on one moment, the outer block raises and the inner one sees the cancellation only.
    """
    given = min(seconds, remaining())
    token = _end.set(asyncio.get_running_loop().time() + given)
    clock = asyncio.timeout(None if math.isinf(given) else given)
    try:
        async with clock:
            yield
    except TimeoutError:
        if not clock.expired():  # the block's own, from somewhere else
            raise
        raise SearchFailure(ToolStatus.TIMEOUT, f"{what} took longer than {given:.3g} s") from None
    finally:
        _end.reset(token)


# K successes out of a list of candidates, at once and in rank order: where one fails, the next in line takes its place.

MARGIN = 0.05  # of the time left, kept back to put together what there is


@dataclass(slots=True)
class Successes[T]:
    """`hits` by the candidate's rank; `cut_short`: infrastructure or the deadline, not the candidates, set the number."""

    hits: dict[int, T] = field(default_factory=dict[int, T])
    failures: list[SearchFailure] = field(default_factory=list[SearchFailure])

    @property
    def cut_short(self) -> bool:
        return any(f.status.infrastructure for f in self.failures)


async def first_successes[C, T](candidates: Sequence[C], k: int, attempt: Callable[[C], Awaitable[T]]) -> Successes[T]:
    """Try candidates in rank order, at most `k` at a time, until `k` succeed, none is left or the deadline is near.

    `attempt` raises SearchFailure for a candidate that is no use. Never raises it itself.
    """
    got: Successes[T] = Successes()
    line = iter(enumerate(candidates))

    async def place() -> None:
        for rank, candidate in line:
            try:
                got.hits[rank] = await attempt(candidate)
                return
            except SearchFailure as e:
                got.failures.append(e)

    loop = asyncio.get_running_loop()
    # Eager tasks: what a local backend answers without waiting costs no turn of the loop.
    places = [asyncio.Task(place(), loop=loop, eager_start=True) for _ in range(min(k, len(candidates)))]
    running = [p for p in places if not p.done()]
    try:
        if running:
            left = remaining()
            await asyncio.wait(running, timeout=None if left == float("inf") else left * (1 - MARGIN))
    finally:
        late = [p for p in running if not p.done()]
        for p in late:
            p.cancel()
        if late:
            await asyncio.gather(*late, return_exceptions=True)
    for p in places:
        if not p.cancelled():
            p.result()  # a defect of a backend is not a failure of a page
    got.failures += [SearchFailure(ToolStatus.TIMEOUT, "no time was left for the page")] * len(late)
    return got
