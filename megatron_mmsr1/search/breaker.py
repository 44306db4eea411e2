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
    """`on_change` is told the new state: closed, open, half_open. One event loop's; `clock` gives seconds."""

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
        self._row = 0  # failures in a row
        self._trips = 0  # times opened since it was last closed
        self._until = 0.0

    def admit(self) -> None:
        """Raises SearchFailure(upstream_error) while open, or while another call is the probe."""
        if self.state == "closed":
            return
        if self.state == "open" and self._clock() >= self._until:
            self._to("half_open")
            return
        wait = max(0.0, self._until - self._clock())
        why = f"next try in {wait:.1f} s" if self.state == "open" else "its one probe is under way"
        raise SearchFailure(ToolStatus.UPSTREAM_ERROR, f"{self.name} keeps failing and is left alone ({why})")

    def succeeded(self) -> None:
        self._row = self._trips = 0
        if self.state != "closed":
            self._to("closed")

    def failed(self) -> None:
        self._row += 1
        if self.state == "half_open" or (self.state == "closed" and self._row >= self._limit):
            self._until = self._clock() + min(self._cooldown * 2**self._trips, MAX_COOLDOWN_S)
            self._trips += 1
            self._to("open")

    def abandoned(self) -> None:
        """An admitted call ended without saying anything about the backend (it was cancelled): a probe is given back."""
        if self.state == "half_open":
            self._to("open")

    def _to(self, state: str) -> None:
        self.state = state
        self._on_change(state)
