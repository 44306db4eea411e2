"""The trained weights on their way to the engines, and which exported versions stay on disk."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.sync.disk import DiskSync

if TYPE_CHECKING:
    from megatron_mmsr1.megatron.actor import MegatronActor


class Weights:
    """`seconds`: how long the last publication took."""

    def __init__(self, cfg: RunConfig, actor: MegatronActor, engines: list[str]) -> None:
        self.cfg, self.actor, self.engines = cfg, actor, engines
        self.directory = Path(cfg.output) / "weights"
        self.seconds = 0.0

    def publish(self, version: int) -> None:
        """Collective. Export the weights and put them into every engine under this version; the engines confirm it."""
        started = time.monotonic()
        target = self.directory / f"v{version:06d}"
        self.actor.export(target)
        if self.actor.parallel.rank == 0:
            DiskSync(self.engines).push(target, version)
            prune(self.directory, "v*", keep=self.cfg.train.keep_weights, current=target)
        self.actor.parallel.barrier()
        self.seconds = time.monotonic() - started


def prune(parent: Path, pattern: str, *, keep: int, current: Path) -> None:
    """Of the directories that come before `current` in the order of their names, leave the last `keep` - 1.

    What comes after it stays: a run that was set back to an earlier checkpoint has later ones, which are not ours to judge.
    """
    before = [p for p in sorted(parent.glob(pattern)) if p.name < current.name]
    for old in before[: max(0, len(before) - (keep - 1))]:
        shutil.rmtree(old)
