"""A rank that hangs is found, named with its phase and its stack, and the ranks are ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.procs.machine import Process
from megatron_mmsr1.procs.stacks import RankState
from megatron_mmsr1.run.phases import Phase, read
from megatron_mmsr1.run.torchrun import RanksDied

EVERY_S = 1.0
STILL = ("T", "t", "Z")  # states in which a process does nothing, whatever it waits for


class Watchdog:
    """Called often while ranks run. Raises RanksDied once none of them has gone on for `hung_after_s`."""

    def __init__(self, out: Path, hung_after_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.out, self.hung_after_s, self._clock = out, hung_after_s, clock
        self._seen: dict[int, Phase] = {}
        self._moved = self._looked = clock()

    def __call__(self, processes: Sequence[Process]) -> None:
        now = self._clock()
        if now - self._looked < min(EVERY_S, self.hung_after_s / 4):
            return
        self._looked = now
        found = read(self.out)
        if found != self._seen:
            self._seen, self._moved = found, now
        elif now - self._moved >= self.hung_after_s:
            raise RanksDied(self._tell(processes))

    def _tell(self, processes: Sequence[Process]) -> str:
        states: list[RankState] = []
        for p in processes:
            try:
                states += p.ranks()
            except RunError as e:
                return f"no rank has gone on for {self.hung_after_s:g} s, and one cannot be asked why: {e}"
        file = self.out / "logs" / f"hung-{time.strftime('%Y%m%d-%H%M%S')}.txt"
        phases = {r: str(p) for r, p in self._seen.items()}
        file.write_text("\n\n".join(f"{s}; {phases.get(s.rank, 'it has not begun')}\n{s.stack}" for s in states) + "\n")
        limit = f"{self.hung_after_s:g} s (placement.hung_after_s)"
        return f"no rank has gone on for {limit}: {self._suspects(states)}. The stacks of all ranks: {file}"

    def _suspects(self, states: Sequence[RankState]) -> str:
        """Who does nothing; else who is furthest behind; else all of them wait alike."""
        known = {s.rank: s for s in states}
        still = [s for s in states if s.state in STILL]
        behind = min((p.order for p in self._seen.values()), default=0)
        last = [p for p in self._seen.values() if p.order == behind]
        named = [self._seen.get(s.rank, Phase(s.rank, 0, "start")) for s in still] or (
            last if len(last) < len(self._seen) else []
        )
        if not named:
            where = next(iter(self._seen.values()), None)
            return f"all wait in {where.name} of step {where.step}" if where else "none has begun"
        return ", ".join(f"{p}{f' ({known[p.rank]})' if p.rank in known else ''}" for p in named[:4])
