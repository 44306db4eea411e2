"""Where each rank is: a small file a rank, written when it goes on, read by whoever looks for one that hangs."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_mmsr1.data.files import write_text

DIRECTORY = "phases"
BEAT_S = 5.0


@dataclass(frozen=True, slots=True)
class Phase:
    """`order` counts the phases of this life of the rank, `beats` what it was heard to do within this one."""

    rank: int
    step: int
    name: str
    order: int = 0
    beats: int = 0

    def __str__(self) -> str:
        return f"rank {self.rank} in {self.name} of step {self.step}"


class Phases:
    """A rank's side."""

    def __init__(self, out: Path, rank: int) -> None:
        self._file = out / DIRECTORY / f"rank-{rank:05d}.json"
        self._at = Phase(rank, 0, "start")
        self._beaten = time.monotonic()
        self._write()

    def enter(self, name: str, step: int) -> None:
        """The rank begins with this."""
        self._at = Phase(self._at.rank, step, name, self._at.order + 1)
        self._write()

    def beat(self) -> None:
        """It does something; written every few seconds at most."""
        if time.monotonic() - self._beaten >= BEAT_S:
            self._at = Phase(self._at.rank, self._at.step, self._at.name, self._at.order, self._at.beats + 1)
            self._write()

    def _write(self) -> None:
        self._beaten = time.monotonic()
        write_text(self._file, json.dumps(asdict(self._at)), sync=False)  # of no use after a power cut


def read(out: Path) -> dict[int, Phase]:
    """By rank; those of which there is nothing yet are missing."""
    found = {}
    for file in sorted((out / DIRECTORY).glob("rank-*.json")):
        try:
            phase = Phase(**json.loads(file.read_text()))
        except (FileNotFoundError, ValueError):
            continue  # taken away by a new life, or a file system that shows half a change
        found[phase.rank] = phase
    return found


def clear(out: Path) -> None:
    """Before ranks start: what an earlier life left says nothing."""
    shutil.rmtree(out / DIRECTORY, ignore_errors=True)
