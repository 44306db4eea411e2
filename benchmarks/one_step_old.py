"""A weight transport for learning.py: engines get the weights of the step before, under the version of this one.

What an asynchronous run samples with, made on purpose and always by one step:
`train.sync={name: benchmarks/one_step_old.py:TRANSPORT}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from megatron_mmsr1.rollout.engines.base import Control
from megatron_mmsr1.sync import published
from megatron_mmsr1.sync.transports.disk import DiskTransport, Settings
from megatron_mmsr1.sync.writer import write_checkpoint


class OneStepOld(DiskTransport):
    """At a run's first publication the weights are its own."""

    def push(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        target, before = self._home / f"v{version:06d}", self._home / f"v{version - 1:06d}"
        write_checkpoint(weights, self._model, target, shard_bytes=self._shard_bytes)
        self.load(before if before.is_dir() else target, version)
        published.write(self._home, target, version)


class _Part:
    Settings = Settings

    def open(self, settings: Settings, engines: Sequence[Control], *, home: Path, model: Path) -> OneStepOld:
        return OneStepOld(settings, engines, home=home, model=model)


TRANSPORT = _Part()
