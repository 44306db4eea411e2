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
    `selected`: bool [n] for the n scored tokens of each trajectory, or empty where the policy loss selects none.
    """

    algorithm: Composition
    trajectories: Sequence[Trajectory]
    advantages: Sequence[np.ndarray]  # float32, of each trajectory: [], or [n] for its n scored tokens
    batches: list[MicroBatch]  # this rank's
    weights: list[np.ndarray] = field(init=False)
    totals: Totals = field(init=False)
    old: list[Tensor] = field(default_factory=list)
    ref: list[Tensor] = field(default_factory=list)
    selected: list[np.ndarray] = field(default_factory=list)
    kl_coef: float | None = None  # in the place of the algorithm's own

    def __post_init__(self) -> None:
        self.weights = [token_weights(t) for t in self.trajectories]
        counts = [scored(t, w) for t, w in zip(self.trajectories, self.weights, strict=True)]
        self.totals = Totals(
            tokens=float(sum(tokens for tokens, _ in counts)),
            weight=sum(weight for _, weight in counts),
            sequences=float(sum(tokens > 0 for tokens, _ in counts)),
        )

    def share(self, i: int, scores: Tensor) -> tuple[Tensor, Tensor]:
        """scores float32 [2, T] (log-prob, entropy) of the i-th micro-batch -> `Composition.loss`."""
        b, device = self.batches[i], scores.device

        def per_token(rows: Sequence[Any]) -> Tensor:
            flat = [np.asarray(rows[m], dtype=np.float32)[b.source[b.owner == m]] for m in b.members]
            return torch.from_numpy(np.concatenate(flat) if flat else np.empty(0, dtype=np.float32)).to(device)

        def per_scored(rows: Sequence[np.ndarray], dtype: type) -> Tensor:
            flat = [np.broadcast_to(rows[m], int(np.count_nonzero(b.owner == m))) for m in b.members]
            return torch.from_numpy(np.concatenate(flat).astype(dtype) if flat else np.empty(0, dtype=dtype)).to(device)

        lengths = [n for m in b.members if (n := int(np.count_nonzero(b.owner == m)))]
        x = Scored(
            logprobs=scores[0],
            entropy=scores[1],
            weights=per_token(self.weights),
            advantages=per_scored(self.advantages, np.float32),
            engine_logprobs=per_token([t.logprobs for t in self.trajectories]),
            old_logprobs=self.old[i] if self.old else None,
            ref_logprobs=self.ref[i] if self.ref else None,
            cu_seqlens=torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int64)).to(device),
            selected=per_scored(self.selected, np.bool_) if self.selected else None,
        )
        return self.algorithm.loss(x, self.totals, self.kl_coef)

    def scores_of(self, logprobs: Sequence[Tensor]) -> list[tuple[int, np.ndarray]]:
        """Of this rank's trajectories: number, and float32 [2, n], the policy's and the old log-probs of its scored tokens.
        `logprobs` [T] of each micro-batch."""
        found: list[tuple[int, np.ndarray]] = []
        for b, now, old in zip(self.batches, logprobs, self.old or logprobs, strict=True):
            both = torch.stack([now, old]).cpu().numpy()
            found += [(m, both[:, b.owner == m]) for m in b.members]
        return found

    def choose(self, scores: Sequence[tuple[int, np.ndarray]]) -> None:
        """Let the policy loss select of all the update's tokens; `scores`: `scores_of` of every rank, in any order. It sees
        them in the order of group and sample: neither packing nor ranks nor the order of a group change what it selects."""
        by_number = dict(scores)
        order = sorted(by_number, key=lambda m: (self.trajectories[m].group_id, self.trajectories[m].sample_index, m))
        values = [np.broadcast_to(self.advantages[m], by_number[m].shape[1]) for m in order]
        now, old = torch.from_numpy(np.concatenate([by_number[m] for m in order], 1))
        select: Any = getattr(self.algorithm.policy_loss, "select")  # noqa: B009 (who needs "selected" has it: parts.contract)
        marked = select(now, old, torch.from_numpy(np.concatenate(values).astype(np.float32))).numpy()
        cuts = np.cumsum([len(v) for v in values])[:-1]
        of = dict(zip(order, np.split(marked, cuts), strict=True))
        self.selected = [of[m] for m in range(len(self.trajectories))]
