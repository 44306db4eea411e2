"""A circuit breaker a backend: when it only fails, it is left alone for a while, and calls fail at once instead of waiting.

Closed -> (`failures` in a row) -> open -> (the cooldown) -> half open: one call goes through as a probe -> closed, or open
again for twice as long, up to MAX_COOLDOWN_S.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from megatron_mmsr1.search.interfaces import SearchFailure
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
