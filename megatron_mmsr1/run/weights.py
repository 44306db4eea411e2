"""The trained weights on their way to the engines, and which exported versions stay on disk."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.rollout import engines as kinds
from megatron_mmsr1.sync import transports
from megatron_mmsr1.sync.transports.base import Transport

if TYPE_CHECKING:
    from megatron_mmsr1.megatron.actor import MegatronActor


class Weights:
    """`seconds`: how long the last publication took."""

    def __init__(self, cfg: RunConfig, actor: MegatronActor, engines: list[str]) -> None:
        self.cfg, self.actor = cfg, actor
        self.directory = Path(cfg.output) / "weights"
        self.seconds = 0.0
        self.transport: Transport | None = None
        if engines and actor.parallel.rank == 0:
            controls = [kinds.get(cfg.engine.name).control(url) for url in engines]
            self.directory.mkdir(parents=True, exist_ok=True)
            part = transports.get(str(getattr(cfg.train.sync, "name", cfg.train.sync)))
            self.transport = part.open(cfg.train.sync, controls, home=self.directory, model=Path(cfg.model.path))

    def publish(self, version: int) -> None:
        """Collective. The weights into every engine under this version; the engines confirm it. Raises RunError on every rank
        as the transport does."""
        started = time.monotonic()
        weights = self.actor.weights()
        failed = ""
        if self.transport is not None:
            try:
                self.transport.push(weights, version)
                prune(self.directory, "v*", keep=self.cfg.train.keep_weights, current=self.directory / f"v{version:06d}")
            except RunError as e:
                failed = str(e)
        for _ in weights:  # gathering them is collective: to the end, whoever uses them
            pass
        failed = self.actor.parallel.broadcast_object(failed)
        if failed:
            raise RunError(failed)
        self.seconds = time.monotonic() - started


def prune(parent: Path, pattern: str, *, keep: int, current: Path) -> None:
    """Of the directories that come before `current` in the order of their names, leave the last `keep` - 1.

    What comes after it stays: a run that was set back to an earlier checkpoint has later ones, which are not ours to judge.
    """
    before = [p for p in sorted(parent.glob(pattern)) if p.name < current.name]
    for old in before[: max(0, len(before) - (keep - 1))]:
        shutil.rmtree(old)
