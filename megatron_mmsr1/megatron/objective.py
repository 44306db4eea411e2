"""From a micro-batch's scores to its share of the loss: lays out what the composition wants to know of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_mmsr1.algorithm.composition import Composition, Scored
from megatron_mmsr1.algorithm.parts import Totals
from megatron_mmsr1.megatron.batch import MicroBatch, scored, token_weights
from megatron_mmsr1.trajectory import Trajectory


@dataclass
class Objective:
    """The loss of one update over `trajectories`, a micro-batch at a time. Those of other replicas may be outlines.

    `old` and `ref` are log-probs of the micro-batches' scored tokens, float32 [T] each, or empty: the policy's own, and none.
    """

    algorithm: Composition
    trajectories: Sequence[Trajectory]
    advantages: np.ndarray  # float64 [N], a value a trajectory
    batches: list[MicroBatch]  # this rank's
    weights: list[np.ndarray] = field(init=False)
    totals: Totals = field(init=False)
    old: list[Tensor] = field(default_factory=list)
    ref: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weights = [token_weights(t) for t in self.trajectories]
        counts = [scored(t, w) for t, w in zip(self.trajectories, self.weights, strict=True)]
        self.totals = Totals(
            tokens=float(sum(tokens for tokens, _ in counts)),
            weight=sum(weight for _, weight in counts),
            sequences=float(sum(tokens > 0 for tokens, _ in counts)),
        )

    def share(self, i: int, scores: Tensor) -> tuple[Tensor, np.ndarray]:
        """scores float32 [2, T] (log-prob, entropy) of the i-th micro-batch -> `Composition.loss`, its report as numpy."""
        b, device = self.batches[i], scores.device

        def per_token(rows: Sequence[Any]) -> Tensor:
            flat = [np.asarray(rows[m], dtype=np.float32)[b.source[b.owner == m]] for m in b.members]
            return torch.from_numpy(np.concatenate(flat) if flat else np.empty(0, dtype=np.float32)).to(device)

        lengths = [n for m in b.members if (n := int(np.count_nonzero(b.owner == m)))]
        x = Scored(
            logprobs=scores[0],
            entropy=scores[1],
            weights=per_token(self.weights),
            advantages=torch.from_numpy(self.advantages[b.owner].astype(np.float32)).to(device),
            engine_logprobs=per_token([t.logprobs for t in self.trajectories]),
            old_logprobs=self.old[i] if self.old else None,
            ref_logprobs=self.ref[i] if self.ref else None,
            cu_seqlens=torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int64)).to(device),
        )
        value, report = self.algorithm.loss(x, self.totals)
        return value, report.numpy()
