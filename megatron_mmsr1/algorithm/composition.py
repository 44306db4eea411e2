"""An algorithm put together: advantages -> correction -> policy loss -> KL -> average."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from megatron_mmsr1.algorithm.parts import Advantage, Average, Correction, Kl, PolicyLoss, Totals
from megatron_mmsr1.algorithm.recipe import SEAMS
from megatron_mmsr1.config.algorithm import AlgorithmConfig
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.plugins.registry import Registry

SUMS = ("loss", "pg_loss", "kl", "entropy", "clip_fraction", "correction_mean", "logprob_diff_mean")
MAXIMA = ("logprob_diff_max",)


def part[T](registry: Registry[type[T]], name: str, options: dict[str, Any]) -> T:
    """A part with these settings. Raises UsageError for an unknown name or setting, or a value that does not fit."""
    cls: Any = registry.get(name)
    try:
        settings = cls.Settings.model_validate({"name": name} | options)
    except ValidationError as e:
        known = ", ".join(k for k in cls.Settings.model_fields if k != "name")
        said = "; ".join(f"{'.'.join(map(str, err['loc']))}: {err['msg']}" for err in e.errors())
        raise UsageError(f"{registry.kind} {name}: {said}; its settings are {known or 'none'}") from None
    return cls(settings)


def compose(cfg: AlgorithmConfig) -> Composition:
    """The algorithm that the config describes. Raises UsageError for a part that is not there or breaks its contract."""
    made: dict[str, Any] = {}
    for seam, settings in cfg.parts().items():
        registry = import_module(f"megatron_mmsr1.algorithm.{SEAMS[seam]}").REGISTRY
        made[seam] = registry.get(_name(settings))(settings)
    return Composition(**made, kl_coef=cfg.kl_coef if "kl" in made else 0.0, entropy_coef=cfg.entropy_coef)


def _name(settings: Section) -> str:
    return str(getattr(settings, "name"))  # noqa: B009 (Settings of every part have one: parts.contract)


@dataclass
class Scored:
    """The scored tokens of one micro-batch, T of them, response after response; float32 [T] unless said otherwise."""

    logprobs: Tensor  # with gradient
    entropy: Tensor  # with gradient
    weights: Tensor  # the loss mask, or a demonstration's weights; none is 0
    advantages: Tensor
    engine_logprobs: Tensor
    old_logprobs: Tensor | None  # None: the policy's own, detached
    ref_logprobs: Tensor | None  # None: no part needs the reference
    cu_seqlens: Tensor  # int64 [S + 1]


@dataclass(frozen=True)
class Composition:
    """What one update minimises. `advantage`, `correction` and `kl` are None in a supervised recipe."""

    policy_loss: PolicyLoss
    average: Average
    advantage: Advantage | None = None
    correction: Correction | None = None
    kl: Kl | None = None
    kl_coef: float = 0.0
    entropy_coef: float = 0.0

    @property
    def supervised(self) -> bool:
        return self.advantage is None

    @property
    def needs(self) -> frozenset[str]:
        """The log-probs that some part reads beside the policy's own: of "old", "reference" and "engine". A KL term of
        coefficient 0 needs none."""
        used = [self.advantage, self.correction, self.policy_loss, self.average, self.kl if self.kl_coef else None]
        return frozenset[str]().union(*(p.needs for p in used if p is not None))

    def select(self, rewards: Sequence[float], group_ids: Sequence[Hashable]) -> tuple[list[int], list[float]]:
        """Which rollouts an update is over, as indices in their order, and the advantage of each.

        A group in which every advantage is 0 has no policy gradient; unless a KL or entropy term or the policy loss itself
        gives its tokens one, it is left out, and neither its tokens nor its responses count in the average. Within a group
        that is kept, a rollout of advantage 0 counts like any other.
        """
        assert self.advantage is not None
        values = [float(v) for v in self.advantage.estimate(rewards, group_ids)]
        if self.kl_coef or self.entropy_coef or getattr(self.policy_loss, "without_advantage", False):
            return list(range(len(values))), values
        live = {g for g, v in zip(group_ids, values, strict=True) if v != 0.0}
        kept = [i for i, g in enumerate(group_ids) if g in live]
        return kept, [values[i] for i in kept]

    def loss(self, x: Scored, totals: Totals) -> tuple[Tensor, Tensor]:
        """This micro-batch's share of the loss, a differentiable float32 scalar, and of `SUMS + MAXIMA`, float64.

        Shares add up over micro-batches and ranks to the update's value (`MAXIMA` by their maximum). loss, pg_loss and kl are
        averaged as the loss is, the others over tokens. Raises UsageError that names the file of a part whose result has
        another shape.
        """
        count = len(x.logprobs)
        if not count:  # a micro-batch that keeps ranks in step: no part need know of it
            return x.logprobs.sum() + x.entropy.sum(), torch.zeros(len(SUMS) + len(MAXIMA), dtype=torch.float64)
        zero = torch.zeros_like(x.logprobs)
        shares = _checked(self.average, self.average.shares(x.weights, x.cu_seqlens, totals), count)
        old = x.logprobs.detach() if x.old_logprobs is None else x.old_logprobs
        arguments = (x.logprobs, old, x.advantages, x.cu_seqlens)
        pg = _checked(self.policy_loss, self.policy_loss.losses(*arguments), count)
        weights = zero + 1
        if self.correction is not None:
            found = self.correction.weights(old, x.engine_logprobs, x.cu_seqlens)
            weights = _checked(self.correction, found, count).detach()
            pg = pg * weights
        per_token, kl = pg, zero
        if self.kl is not None and self.kl_coef:
            assert x.ref_logprobs is not None
            kl = _checked(self.kl, self.kl.penalty(x.logprobs, x.ref_logprobs), count)
            per_token = per_token + self.kl_coef * kl
        if self.entropy_coef:
            per_token = per_token - self.entropy_coef * x.entropy
        clipped = getattr(self.policy_loss, "clipped", None)
        cut = zero if clipped is None else _checked(self.policy_loss, clipped(*arguments), count).float()
        gap = zero if self.supervised else (old - x.engine_logprobs).abs()
        value = (per_token * shares).sum()
        averaged = [(v * shares).sum() for v in (per_token, pg, kl)]
        plain = [v.sum() / totals.tokens for v in (x.entropy, cut, weights, gap)]
        return value, torch.stack([*averaged, *plain, gap.max()]).detach().double().cpu()


def _checked(part: object, found: Any, count: int) -> Tensor:
    """What a part gave, if it is a value a token."""
    if not isinstance(found, Tensor) or found.shape != (count,):
        shape = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise UsageError(
            f"{inspect.getsourcefile(type(part))}: {type(part).__name__} gave {shape} for {count} tokens; it must give one "
            f"float a token, a tensor of shape ({count},)"
        )
    return found
