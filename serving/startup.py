"""What a person sees while servers start: one line that counts the seconds on a terminal, elsewhere a line an event."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.status import Status

from megatron_mmsr1.procs.progress import duration

EVERY_S = 10.0  # between lines where there is no terminal


class Startup:
    """`with Startup() as shown: shown.waiting([names])`, now and then."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._began = time.monotonic()
        self._said = self._began - EVERY_S
        self._names: list[str] = []
        self._live: Status | None = None

    def waiting(self, names: list[str]) -> None:
        now = time.monotonic()
        gone = [n for n in self._names if n not in names]
        self._names = list(names)
        for name in gone:
            self.say(f"{name} is ready after {duration(now - self._began)}")
        line = f"starting {' and '.join(names)} ({duration(now - self._began)})"
        if self._live is not None:
            self._live.update(line if names else "")
        elif names and now - self._said >= EVERY_S:
            self._said = now
            self.say(line)

    def say(self, line: str) -> None:
        if self._live is not None:
            self._live.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=self._stream, flush=True)

    def __enter__(self) -> Self:
        if self._stream.isatty():
            self._live = Status("starting", console=Console(file=self._stream))
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
