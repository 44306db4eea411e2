"""Gradients that are not finite: found by any rank, known to all before the optimizer sees them, written down for a look."""

# pyright: standard
# megatron.core has no types.

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.megatron.batch import MicroBatch
from megatron_mmsr1.trajectory import Trajectory

if TYPE_CHECKING:
    from megatron_mmsr1.megatron.parallel import Parallel

DIRECTORY = "nonfinite"  # in the run's


class Guard:
    """Lets no optimizer update through whose gradients are not finite, for at most `most` of them in a row."""

    def __init__(self, chunks: Sequence[Any], parallel: Parallel, output: Path, most: int) -> None:
        self.chunks, self.parallel, self.directory, self.most = chunks, parallel, output / DIRECTORY, most
        self.in_a_row = 0

    def passes(self, step: int, trajectories: Sequence[Trajectory], batches: Sequence[MicroBatch], reports: np.ndarray) -> bool:
        """Collective, the same on every rank. Where it is not so, ranks with such gradients leave
        nonfinite/step_N.rankR.json: their parameters and micro-batches. Raises RunError for one in a row too many."""
        names = not_finite(self.chunks)
        if not self.parallel.max([float(bool(names))])[0]:
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        if names:
            self._write(step, names, trajectories, batches, reports)
        if self.in_a_row > self.most:
            raise RunError(
                f"step {step}: the gradients of {self.in_a_row} optimizer updates in a row are not finite, more than "
                f"train.max_skipped_updates={self.most}; the weights are those of before. {self.directory} names parameters "
                "and trajectories. Resume from the last checkpoint with a lower optimizer.lr, or other data"
            )
        return False

    def _write(
        self, step: int, names: list[str], trajectories: Sequence[Trajectory], batches: Sequence[MicroBatch], reports: Any
    ) -> None:
        told = [[str(v) for v in r] for r in reports] or [[] for _ in batches]  # only the last pipeline stage knows losses
        found = {
            "step": step,
            "parameters": names,
            "micro_batches": [
                {"report": r, "trajectories": [f"{trajectories[m].group_id}#{trajectories[m].sample_index}" for m in b.members]}
                for b, r in zip(batches, told, strict=True)
            ],
        }
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / f"step_{step:06d}.rank{self.parallel.rank}.json").write_text(json.dumps(found, indent=1) + "\n")


def not_finite(chunks: Sequence[Any]) -> list[str]:
    """The parameters of this rank, by megatron-core's names, whose gradient has an entry that is not finite."""
    buffers: list[Tensor] = [b.grad_data for c in chunks for b in (*c.buffers, *c.expert_parallel_buffers)]
    if all(_finite(x) for x in buffers):
        return []
    named = [(n, p.main_grad) for c in chunks for n, p in c.module.named_parameters() if p.requires_grad]
    return [name for name, grad in named if not _finite(grad)]


def _finite(x: Tensor) -> bool:
    """Without a copy of it: the least and the largest value are not finite where any is not."""
    return not x.numel() or all(bool(v.isfinite()) for v in x.aminmax())
