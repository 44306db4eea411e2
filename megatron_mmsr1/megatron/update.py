"""One optimizer update over (a part of) a step's trajectories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.megatron import batch as batches
from megatron_mmsr1.megatron import objective
from megatron_mmsr1.megatron.forward_backward import ForwardBackward
from megatron_mmsr1.trajectory import Trajectory

if TYPE_CHECKING:
    from megatron_mmsr1.megatron.actor import MegatronActor


class Update:
    """One optimizer update over some of the step's trajectories."""

    def __init__(self, actor: MegatronActor, trajectories: list[Trajectory], advantages: np.ndarray) -> None:
        self.actor, self.trajectories, self.advantages = actor, trajectories, advantages
        self.batches = actor.micro_batches(trajectories)
        self.weights = [batches.token_weights(t) for t in trajectories]
        # Position 0 is never scored, whatever its weight.
        self.global_tokens = float(sum(np.count_nonzero(w[1:]) for w in self.weights))
        self.global_weight = float(sum(w[1:].sum(dtype=np.float64) for w in self.weights))
        if not self.global_tokens or not self.global_weight > 0:
            raise UsageError("nothing in the batch is trained on: every loss mask is 0")
        self.old: list[Tensor] = []
        self.ref: list[Tensor] = []

    def score_first(self, *, old: bool, reference: ForwardBackward | None) -> None:
        """The log-probs that must come from the weights before any update: with a single update they are its own."""
        if old:
            self.old = [s[0] for s in self.actor.policy.score(self.batches)]
        if reference is not None:
            self.ref = [s[0] for s in reference.score(self.batches)]

    def run(self, rate: float) -> dict[str, float]:
        actor = self.actor
        # An update leaves the gradient buffer as each parameter's `grad`, where the next backward would add it twice.
        actor.optimizer.zero_grad()
        reports = actor.policy.train(self.batches, self._loss)
        for group in actor.optimizer.param_groups:
            group["lr"] = rate
        ok, grad_norm, _ = actor.optimizer.step()
        if not ok or not math.isfinite(grad_norm):
            raise RunError(
                f"step {actor.step}: the gradient norm is {grad_norm}: the weights in memory are lost, the last checkpoint is "
                "not; resume from it with a lower optimizer.lr or a lower optimizer.clip_grad"
            )
        n = len(objective.SUMS)
        sums = np.sum([r[:n] for r in reports], axis=0) if reports else np.zeros(n)
        maxima = np.max([r[n:] for r in reports], axis=0) if reports else np.zeros(len(objective.MAXIMA))
        if not actor.parallel.speaks_for_replica:
            sums = np.zeros(n)
        names = (*objective.SUMS, *objective.MAXIMA)
        values = [*actor.parallel.sum(sums.tolist()), *actor.parallel.max(maxima.tolist())]
        return dict(zip(names, values, strict=True)) | {
            "grad_norm": float(grad_norm),
            "loss_tokens": self.global_tokens,
        }

    def _loss(self, i: int, scores: Tensor) -> tuple[Tensor, np.ndarray]:
        b = self.batches[i]

        def per_token(rows: Sequence[Any]) -> Tensor:
            flat = [np.asarray(rows[m], dtype=np.float32)[b.source[b.owner == m]] for m in b.members]
            return torch.from_numpy(np.concatenate(flat) if flat else np.empty(0, dtype=np.float32)).to(scores.device)

        inputs = objective.Inputs(
            weights=per_token(self.weights),
            advantages=torch.from_numpy(self.advantages[b.owner].astype(np.float32)).to(scores.device),
            engine_logprobs=per_token([t.logprobs for t in self.trajectories]),
            old_logprobs=self.old[i] if self.old else None,
            ref_logprobs=self.ref[i] if self.ref else None,
            global_tokens=self.global_tokens,
            global_weight=self.global_weight,
        )
        return objective.loss(self.actor.cfg.algorithm, scores, inputs)
