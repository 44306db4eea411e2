"""Ctrl-C: the first one ends a run after the step that it is in, with a checkpoint; the second one at once. SIGUSR1, by which
Slurm warns of the end of a job's time, is the first one, and the job goes on later."""

from __future__ import annotations

import sys
from pathlib import Path

from megatron_mmsr1.checkpoints.manifest import latest

NAME = "stop"


class Stop:
    """A file in the run's directory that asks the ranks to stop: it reaches them on other machines too."""

    def __init__(self, out: Path) -> None:
        self.out, self.file = out, out / NAME
        self.asked = False
        self.goes_on = False  # asked for by SIGUSR1

    @property
    def requested(self) -> bool:
        return self.file.exists()

    def withdraw(self) -> None:
        self.file.unlink(missing_ok=True)

    def ask(self) -> None:
        """Ask the ranks, and say what happens."""
        self.asked = True
        self.file.touch()
        print(
            "\nstopping after this step, with a checkpoint. Ctrl-C again stops at once: steps since "
            f"{self._last()} would then be trained again, from the rollouts that are kept",
            file=sys.stderr,
            flush=True,
        )

    def ask_and_go_on(self) -> None:
        """Ask the ranks; the job is to be queued again."""
        self.goes_on = True
        self.file.touch()
        print("SIGUSR1: stopping after this step, with a checkpoint; the job goes on from it", file=sys.stderr, flush=True)

    def say_what_is_lost(self) -> None:
        print(f"\nstopped at once. The same command goes on from {self._last()}", file=sys.stderr, flush=True)

    def _last(self) -> str:
        found = latest(self.out / "checkpoints")
        return f"the checkpoint {found.name}" if found else "the start (there is no checkpoint yet)"
