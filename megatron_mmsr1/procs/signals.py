"""SIGTERM and SIGHUP as an exit that unwinds: what a verb started ends with it, as on Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(SystemExit):
    """SIGTERM or SIGHUP reached a process that had started others; it exits with 128 + the signal."""


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP raise Terminated. Main thread only."""
    before = {number: signal.signal(number, _exit) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, _frame: FrameType | None) -> None:
    raise Terminated(128 + number)
