"""What protects a backend, and the log, from its failures: a breaker, the line on an outage, a rate.

A circuit breaker a backend: when it only fails, it is left alone for a while, and calls fail at once instead of waiting.

Closed -> (`failures` in a row) -> open -> (the cooldown) -> half open: one call goes through as a probe -> closed, or open
again for twice as long, up to MAX_COOLDOWN_S.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.upstream.deadline import remaining
from megatron_mmsr1.trajectory import ToolStatus

MAX_COOLDOWN_S = 60.0


class Breaker:
    """`on_change` is told the new state: closed, open, half_open. One event loop's; `clock` gives seconds.

    `admit` gives a ticket, with which the call reports how it ended, once. A call that was admitted before the last turn
    says nothing about the state after it, so its report is dropped: only the probe decides over a half open breaker.
    """

    def __init__(
        self,
        name: str,
        failures: int,
        cooldown_s: float,
        on_change: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.name, self._limit, self._cooldown = name, failures, cooldown_s
        self._on_change, self._clock = on_change, clock
        self.state = "closed"
        self._turn = 0  # counts the changes of state: what a ticket holds
        self._probing = False
        self._row = 0  # failures in a row
        self._trips = 0  # times opened since it was last closed
        self._until = 0.0
        self._last = ""

    def check(self) -> None:
        """Raises SearchFailure(upstream_error) while open, or while another call is the probe. Takes no place."""
        if self.state == "closed" or (self.state == "half_open" and not self._probing):
            return
        wait = self._until - self._clock()
        if self.state == "open" and wait <= 0:
            return
        why = f"next try in {wait:.1f} s" if self.state == "open" else "its one probe is under way"
        raise SearchFailure(ToolStatus.UPSTREAM_ERROR, f"{self.name} keeps failing and is left alone ({why}): {self._last}")

    def admit(self) -> int:
        """A ticket for one call; that of a half open breaker is its probe. Raises as `check` does."""
        self.check()
        if self.state == "open":
            self._to("half_open")
        self._probing = self.state == "half_open"
        return self._turn

    def succeeded(self, ticket: int) -> None:
        if ticket != self._turn:
            return
        self._row = self._trips = 0
        if self.state != "closed":
            self._to("closed")

    def failed(self, ticket: int, why: str) -> None:
        """`why` is told to the calls that are then turned away."""
        if ticket != self._turn:
            return
        self._row += 1
        self._last = why
        if self.state == "half_open" or self._row >= self._limit:
            doubled = self._cooldown * 2.0 ** min(self._trips, 16)  # a day's outage would pass what a float holds
            self._until = self._clock() + min(doubled, MAX_COOLDOWN_S)
            self._trips += 1
            self._to("open")

    def abandoned(self, ticket: int) -> None:
        """An admitted call ended without saying anything about the backend (it was cancelled): a probe is given back."""
        if ticket == self._turn:
            self._probing = False

    def _to(self, state: str) -> None:
        self.state = state
        self._turn += 1
        self._probing = False
        self._on_change(state)


class Outage:
    """A line in the log when something begins to fail, and one with a count when it works again, however many calls met it."""

    def __init__(self, what: str, log: logging.Logger, clock: Callable[[], float] = time.monotonic):
        self._what, self._log, self._clock = what, log, clock
        self.failures = 0
        self._since = 0.0

    def failed(self, why: object) -> None:
        self.failures += 1
        if self.failures == 1:
            self._since = self._clock()
            self._log.warning("%s fails: %s. Said once; the next line is about its end", self._what, why)

    def worked(self) -> None:
        if self.failures:
            lasted = self._clock() - self._since
            self._log.warning("%s works again: %d failures in %.0f s", self._what, self.failures, lasted)
            self.failures = 0


# A rate limit that spreads calls evenly: each is given its own moment, first come, first served.
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
