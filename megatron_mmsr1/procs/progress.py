"""Progress with an estimate of the time left: a live bar on a terminal, elsewhere (a Slurm log, a pipe) one line a step.

`progress` is for a loop in this process; `Follower` shows a loop that runs in another one, through its metrics.jsonl.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from megatron_mmsr1.procs.growing import NewLines

WIDE = 100  # columns of a terminal from which the bar has its full width
WINDOW = 20  # steps that the estimate looks back on: the first ones are slow, and must not weigh for ever


def say(line: str) -> None:
    """A line to the person, on stderr, so that stdout holds results only."""
    print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Two units are enough: 4s, 3m20s, 2h05m."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    return f"{s // 60}m{s % 60:02d}s" if s < 3600 else f"{s // 3600}h{s % 3600 // 60:02d}m"


def number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) else f"{value:.4g}"


class progress:
    """`with progress("Cold start", total) as p: p.step(loss=0.3)`.

    `done`: steps that an earlier run did. `every_s`: without a terminal, seconds that must lie between two lines (the last step
    always gets its line). `stream`: where to, by default stderr, so that stdout holds results only.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        done: int = 0,
        every_s: float = 0.0,
        stream: TextIO | None = None,
        unit: str = "step",
    ) -> None:
        self.title, self.total, self.done, self.every_s, self.unit = title, total, done, every_s, unit
        self.stream = stream or sys.stderr
        self._live: Progress | None = None
        self._seen: deque[tuple[float, int]] = deque(maxlen=WINDOW + 1)
        self._last_line = -math.inf

    def __enter__(self) -> Self:
        self._seen.append((time.monotonic(), self.done))
        if self.stream.isatty():
            console = Console(file=self.stream)
            # A narrow terminal cuts the end of the note, never the title: the pace and the ETA stand first in it.
            columns = (
                TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=len(self.title))),
                BarColumn(bar_width=24 if console.width >= WIDE else 6),
                MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * len(str(self.total)) + 1)),
                TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            )
            self._live = Progress(*columns, console=console, expand=True)
            self._task = self._live.add_task(self.title, total=self.total, completed=self.done, note="")
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def waits_for(self, what: str) -> None:
        """What happens before the next step, so that a count that stands still is understood."""
        if self._live:
            self._live.update(self._task, note=what)
        else:
            print(f"{self.title} {self.done}/{self.total}  {what}", file=self.stream, flush=True)

    def step(self, n: int = 1, *, timed: bool = True, **values: float | str) -> None:
        """`n` more steps are done; `values` are shown beside. `timed=False`: the time so far went into starting up and says
        nothing about a step, so the estimate begins here.
        """
        self.done += n
        now = time.monotonic()
        if not timed:
            self._seen.clear()
        self._seen.append((now, self.done))
        first_time, first_done = self._seen[0]
        per_step = (now - first_time) / max(1, self.done - first_done)
        eta = duration(per_step * max(0, self.total - self.done))
        note = "  ".join(
            ([f"{pace(per_step, self.unit)}  ETA {eta}"] if timed else []) + [f"{k} {number(v)}" for k, v in values.items()]
        )
        if self._live:
            self._live.update(self._task, completed=self.done, note=note)
        elif now - self._last_line >= self.every_s or self.done >= self.total:
            print(f"{self.title} {self.done}/{self.total}  {note}", file=self.stream, flush=True)
            self._last_line = now


def pace(per_step: float, unit: str = "step") -> str:
    if per_step < 0.1:
        return f"{1 / max(per_step, 1e-9):.0f} {unit}s/s"
    return f"{per_step:.2f} s/{unit}" if per_step < 60 else f"{duration(per_step)}/{unit}"


class Follower:
    """Shows the steps that another process writes to a metrics.jsonl; call `poll` now and then (`service.wait_all` does).

    `keys` maps what is shown to the metric's name: {"reward": "reward/mean"}. Lines that stand there already count as done.
    """

    def __init__(self, path: Path, shown: progress, keys: dict[str, str]) -> None:
        self.shown, self.keys = shown, keys
        self._rows = NewLines(path)  # a resume cuts the file; `done` tells which of its lines were shown
        self._timed = False  # the first step comes after the start of every process

    def poll(self) -> None:
        for line in self._rows.read():
            row = json.loads(line)
            if row["step"] >= self.shown.done:
                n = row["step"] + 1 - self.shown.done
                values = {k: row[m] for k, m in self.keys.items() if row.get(m) is not None}
                self.shown.step(n, timed=self._timed, **values)
                self._timed = True
