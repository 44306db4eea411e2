"""One optimizer update over (a part of) a step's trajectories."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from megatron_mmsr1.algorithm.composition import MAXIMA, SUMS, summary
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.megatron.forward_backward import ForwardBackward
from megatron_mmsr1.megatron.objective import Objective
from megatron_mmsr1.megatron.optimizer import set_rates
from megatron_mmsr1.trajectory import Trajectory

if TYPE_CHECKING:
    from megatron_mmsr1.megatron.actor import MegatronActor


class Update:
    """One optimizer update over some of the step's trajectories."""

    def __init__(self, actor: MegatronActor, trajectories: list[Trajectory], advantages: list[np.ndarray]) -> None:
        self.actor = actor
        batches = actor.micro_batches(trajectories)
        self.objective = Objective(actor.algorithm, trajectories, advantages, batches, kl_coef=actor.kl_coef)

    @property
    def empty(self) -> bool:
        """Whether nothing in it is trained on; known to every rank alike."""
        return not self.objective.totals.weight > 0

    def score_first(self, *, old: bool, reference: ForwardBackward | None) -> None:
        """The log-probs that must come from the weights before any update: with a single update they are its own."""
        x = self.objective
        if old:
            x.old = [s[0] for s in self.actor.policy.score(x.batches)]
        if reference is not None:
            x.ref = [s[0] for s in reference.score(x.batches)]

    def run(self, rate: float) -> dict[str, float]:
        """Its metrics; {} if it was skipped, for its gradients were not finite, and has changed nothing."""
        actor, x = self.actor, self.objective
        if "selected" in actor.algorithm.needs:  # under the weights that this update moves
            now = [s[0] for s in actor.policy.score(x.batches)]  # [] but on the last stage
            x.choose(actor.parallel.gather_from_speakers(x.scores_of(now) if now else []))
        # An update leaves the gradient buffer as each parameter's `grad`, where the next backward would add it twice.
        actor.optimizer.zero_grad()
        told = actor.policy.train(x.batches, x.share)
        # Only now: to read one would be to wait for its micro-batch.
        reports = torch.stack(told).cpu().numpy() if told else np.zeros((0, len(SUMS) + len(MAXIMA)))
        if not actor.guard.passes(actor.step, x.trajectories, x.batches, reports):
            return {}
        set_rates(actor.optimizer, rate, actor.cfg.optimizer.weight_decay)
        ok, grad_norm, _ = actor.optimizer.step()
        if not ok or not math.isfinite(grad_norm):
            raise RunError(
                f"step {actor.step}: the gradient norm is {grad_norm}: the weights in memory are lost, the last checkpoint is "
                "not; resume from it with a lower optimizer.lr or a lower optimizer.clip_grad"
            )
        n = len(SUMS)
        sums, maxima = reports[:, :n].sum(0), reports[:, n:].max(0, initial=0.0)
        if not actor.parallel.speaks_for_replica:
            sums = np.zeros(n)
        names = (*SUMS, *MAXIMA)
        values = [*actor.parallel.sum(sums.tolist()), *actor.parallel.max(maxima.tolist())]
        return summary(dict(zip(names, values, strict=True))) | {
            "grad_norm": float(grad_norm),
            "loss_tokens": x.totals.tokens,
        }
