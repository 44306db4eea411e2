"""Whether a process that runs also works: it is asked now and then, and called hung once it has been silent for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FAILURES = 3  # in a row, at least: one late answer of a busy machine says nothing, however late it comes


def pace(hung_after_s: float) -> tuple[float, float]:
    """(seconds between two questions, seconds for an answer) with which what hangs has failed FAILURES of them in
    `hung_after_s`. At most 5 and 30 s; an answer gets two at least."""
    return min(5.0, hung_after_s / (4 * FAILURES)), min(30.0, max(2.0, hung_after_s / (FAILURES + 1)))


class Liveness:
    """Asks `works` every `every_s` seconds in a thread of its own, until `close`.

    `silent_s` is how long the last success is past once FAILURES questions in a row have failed; 0.0 before.
    """

    def __init__(self, works: Callable[[], bool], every_s: float) -> None:
        self._works, self._every_s = works, every_s
        self._last = time.monotonic()
        self._failures = 0
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="liveness", daemon=True).start()

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self._last if self._failures >= FAILURES else 0.0

    def close(self) -> None:
        """Without waiting for a question that is under way."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            if self._works():
                self._failures, self._last = 0, time.monotonic()
            else:
                self._failures += 1
