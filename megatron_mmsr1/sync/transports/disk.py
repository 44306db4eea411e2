"""Weights through the file system: the trainer writes a checkpoint, each engine loads it in place, keeping its process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.sync import published
from megatron_mmsr1.sync.checkpoint import require_same, tensors
from megatron_mmsr1.sync.update import Good, everywhere, update
from megatron_mmsr1.sync.writer import write_checkpoint

if TYPE_CHECKING:
    import torch

    from megatron_mmsr1.rollout.engines.base import Control


class Settings(Section):
    name: str = "disk"
    shard_mb: float = Field(default=1024, gt=0, description="tensors a file, which are in memory together")


class DiskTransport:
    """Writes `home`/v000012 for version 12. `home` must be readable under the same path where the engines run."""

    def __init__(self, settings: Settings, engines: Sequence[Control], *, home: Path, model: Path) -> None:
        self._engines, self._home, self._model = engines, home, model
        self._shard_bytes = int(settings.shard_mb * 2**20)
        self._good: Good | None = None

    def push(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """As `base.Transport` has it. The files are checked before an engine reads them: whole, and of the same tensors as the
        checkpoint that the run started from. After a failure the engines get the version before back."""
        target = self._home / f"v{version:06d}"
        write_checkpoint(weights, self._model, target, shard_bytes=self._shard_bytes)
        self.load(target, version)
        published.write(self._home, target, version)

    def load(self, directory: Path, version: int) -> None:
        """Give the engines a checkpoint that stands on the disk."""
        require_same(tensors(directory), tensors(self._model), directory)

        def take(engine: Control) -> None:
            engine.load(directory, version)

        change = partial(everywhere, act=take)
        self._good = update(self._engines, change, version, last=self._good or self._before(), again=take)

    def _before(self) -> Good | None:
        """What this run, in its life before, published last."""
        found = published.read(self._home)
        if found is None:
            return None
        path, version = found
        return Good(version, lambda e: e.load(path, version))

    def close(self) -> None:
        """Nothing is held open."""


class _Part:
    Settings = Settings

    def open(self, settings: Settings, engines: Sequence[Control], *, home: Path, model: Path) -> DiskTransport:
        return DiskTransport(settings, engines, home=home, model=model)


TRANSPORT = _Part()
