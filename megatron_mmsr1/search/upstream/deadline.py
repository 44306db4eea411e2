"""One clock a call: the deadline that is set at the server's entrance is what every stage below it, and every retry, looks at.

A context variable carries it, so that a call joined with its twins runs under the deadline of whoever came first.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.trajectory import ToolStatus

_end: ContextVar[float | None] = ContextVar("search deadline", default=None)


def remaining() -> float:
    """Seconds until the innermost deadline; infinite outside of any, never below 0."""
    end = _end.get()
    return math.inf if end is None else max(0.0, end - asyncio.get_running_loop().time())


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
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
