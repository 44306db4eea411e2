"""Signals as an exit that unwinds: what a verb started ends with it, as on Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

from megatron_mmsr1.errors import AGAIN

NUMBERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Terminated(SystemExit):
    """SIGTERM or SIGHUP reached a process that had started others; it exits with 128 + the signal. SIGUSR1, by which Slurm says
    that a job's time is nearly over, exits with 75 where there is nothing to save."""


@contextmanager
def exit_on_signals() -> Generator[None]:
    """Inside the block SIGTERM, SIGHUP and SIGUSR1 raise Terminated. Main thread only."""
    before = {number: signal.signal(number, _exit) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, _frame: FrameType | None) -> None:
    raise Terminated(AGAIN if number == signal.SIGUSR1 else 128 + number)


@contextmanager
def on_usr1(act: Callable[[], None]) -> Generator[None]:
    """Inside the block SIGUSR1 calls `act` instead. Main thread only."""

    def handler(_number: int, _frame: FrameType | None) -> None:
        act()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)
