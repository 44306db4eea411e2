"""A rate limit that spreads calls evenly: each is given its own moment, first come, first served."""

from __future__ import annotations

import asyncio

from megatron_mmsr1.search.deadline import remaining
from megatron_mmsr1.search.interfaces import SearchFailure
from megatron_mmsr1.trajectory import ToolStatus


class Pace:
    """At most `per_second` starts in any second, without bursts: vendors count in windows that nobody outside knows.

    One event loop's. A timer that fires late delays its own call only, not those after it, so the rate is also reached.
    """

    def __init__(self, name: str, per_second: float):
        self._name, self._rate, self._gap = name, per_second, 1 / per_second
        self._next = 0.0  # loop time of the first moment that is free

    async def wait(self) -> None:
        """Return at this call's moment. SearchFailure(rate_limited), at once, if the deadline comes first."""
        now = asyncio.get_running_loop().time()
        at = max(now, self._next)
        if at - now >= remaining():
            why = f"{self._name} is asked {self._rate:g} times a second at most: no moment is free before the deadline"
            raise SearchFailure(ToolStatus.RATE_LIMITED, why)
        self._next = after = at + self._gap
        try:
            if at > now:
                await asyncio.sleep(at - now)
        except asyncio.CancelledError:
            if self._next == after:  # nobody queued behind it yet, so the moment can be given back
                self._next = at
            raise
