"""An algorithm put together: advantages -> correction -> policy loss -> KL -> average."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from megatron_mmsr1.algorithm.parts import BY_NAME, Advantage, Average, Correction, Kl, PolicyLoss, Rollout, Totals
from megatron_mmsr1.algorithm.recipe import SEAMS
from megatron_mmsr1.algorithm.responses import later, log_ratio
from megatron_mmsr1.config.algorithm import AlgorithmConfig
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.plugins.registry import Registry
from megatron_mmsr1.plugins.settings import named_settings

AVERAGED = ("loss", "pg_loss", "kl")  # as the loss is
PER_TOKEN = (  # over all tokens alike
    "entropy",
    "clip_fraction",
    "correction_mean",
    "correction_square",
    "correction_clipped",
    "logprob_diff_mean",
    "engine_k1",
    "engine_k3",
)
SUMS = AVERAGED + PER_TOKEN
MAXIMA = ("logprob_diff_max",)


def part[T](registry: Registry[type[T]], name: str, options: dict[str, Any]) -> T:
    """A part with these settings. Raises UsageError for an unknown name or setting, or a value that does not fit."""
    return registry.get(name)(named_settings(registry, name, options))  # type: ignore[call-arg]


def compose(cfg: AlgorithmConfig) -> Composition:
    """The algorithm that the config describes. Raises UsageError for a part that is not there or breaks its contract."""
    made: dict[str, Any] = {}
    for seam, settings in cfg.parts().items():
        registry = import_module(f"megatron_mmsr1.algorithm.{SEAMS[seam]}").REGISTRY
        made[seam] = registry.get(_name(settings))(settings)
    rollouts = "kl" in made
    return Composition(
        **made,
        kl_coef=cfg.kl_coef if rollouts else 0.0,
        kl_in_reward=cfg.kl_in == "reward",
        entropy_coef=cfg.entropy_coef,
        distill_coef=cfg.distill_coef if rollouts else 0.0,
    )


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
    selected: Tensor | None = None  # bool [T]; None: no part needs it


@dataclass(frozen=True)
class Composition:
    """What one update minimises. `advantage`, `correction` and `kl` are None in a supervised recipe."""

    policy_loss: PolicyLoss
    average: Average
    advantage: Advantage | None = None
    correction: Correction | None = None
    kl: Kl | None = None
    kl_coef: float = 0.0
    kl_in_reward: bool = False  # else in the loss
    entropy_coef: float = 0.0
    distill_coef: float = 0.0

    @property
    def supervised(self) -> bool:
        return self.advantage is None

    @property
    def needs(self) -> frozenset[str]:
        """What some part reads beside the policy's own log-probs, of `parts.NEEDS`. A KL term of coefficient 0 needs nothing;
        distillation reads its teacher as the reference."""
        used = [self.advantage, self.correction, self.policy_loss, self.average, self.kl if self.kl_coef else None]
        own = frozenset[str]().union(*(p.needs for p in used if p is not None))
        in_reward = self.distill_coef or (self.kl_coef and self.kl_in_reward)
        return own | {"old", "reference"} if in_reward else own

    def select(
        self, rewards: Sequence[float], group_ids: Sequence[Hashable], rollouts: Sequence[Rollout] | None = None
    ) -> tuple[list[int], list[Tensor]]:
        """Which rollouts an update is over, as indices in their order, and the advantage of each, float32: a number, or one for
        each of its sampled tokens (`rollouts` must be given then).

        A group in which every advantage is 0 has no policy gradient; unless a KL, distillation or entropy term or the policy
        loss itself gives its tokens one, it is left out, and neither its tokens nor its responses count in the average. Within
        a group that is kept, a rollout of advantage 0 counts like any other.
        """
        assert self.advantage is not None
        per_token = getattr(self.advantage, "per_token", None)
        if per_token is None:
            values = list(self.advantage.estimate(rewards, group_ids))
        else:
            assert rollouts is not None
            values = list[Tensor](per_token(rewards, group_ids, rollouts))
        others = self.kl_coef or self.entropy_coef or self.distill_coef
        if others or getattr(self.policy_loss, "without_advantage", False):
            return list(range(len(values))), values
        live = {g for g, v in zip(group_ids, values, strict=True) if v.any()}
        kept = [i for i, g in enumerate(group_ids) if g in live]
        return kept, [values[i] for i in kept]

    def loss(self, x: Scored, totals: Totals, kl_coef: float | None = None) -> tuple[Tensor, Tensor]:
        """This micro-batch's share of the loss, a differentiable float32 scalar, and of `SUMS + MAXIMA`, float64 on its device.

        Shares add up over micro-batches and ranks to the update's value (`MAXIMA` by their maximum). loss, pg_loss and kl are
        averaged as the loss is, the others over tokens. `kl_coef`: in the place of its own. Raises UsageError that names the
        file of a part whose result has another shape.
        """
        count = len(x.logprobs)
        if not count:  # a micro-batch that keeps ranks in step: no part need know of it
            none = torch.zeros(len(SUMS) + len(MAXIMA), dtype=torch.float64, device=x.logprobs.device)
            return x.logprobs.sum() + x.entropy.sum(), none
        coef = self.kl_coef if kl_coef is None else kl_coef
        zero = torch.zeros_like(x.logprobs)
        shares = _checked(self.average, self.average.shares(x.weights, x.cu_seqlens, totals), count)
        old = x.logprobs.detach() if x.old_logprobs is None else x.old_logprobs
        advantages, kl = x.advantages, zero
        if self.kl is not None and self.kl_coef:
            assert x.ref_logprobs is not None
            of = old if self.kl_in_reward else x.logprobs
            by_name = {"old_logprobs": old} if "old" in self.kl.needs else {}
            kl = _checked(self.kl, self.kl.penalty(of, x.ref_logprobs, **by_name), count)
            if self.kl_in_reward:
                advantages = advantages - coef * later(kl, x.cu_seqlens)
        if self.distill_coef:
            assert x.ref_logprobs is not None
            advantages = advantages - self.distill_coef * (old - x.ref_logprobs)
        offered = {"selected": x.selected, "advantages": advantages, "logprobs": x.logprobs.detach()}
        arguments = (x.logprobs, old, advantages, x.cu_seqlens)
        pg, cut = _values(self.policy_loss, self.policy_loss.losses, arguments, offered)
        weights, off = zero + 1, zero
        if self.correction is not None:
            given = (old, x.engine_logprobs, x.cu_seqlens)
            weights, off = (v.detach() for v in _values(self.correction, self.correction.weights, given, offered))
            pg = pg * weights
        per_token = pg
        if not self.kl_in_reward:
            per_token = per_token + coef * kl
        if self.entropy_coef:
            per_token = per_token - self.entropy_coef * x.entropy
        gap = zero if self.supervised else log_ratio(old, x.engine_logprobs)
        value = (per_token * shares).sum()
        averaged = [(v * shares).sum() for v in (per_token, pg, kl)]
        told = (x.entropy, cut, weights, weights**2, off, gap.abs(), -gap, torch.expm1(gap) - gap)
        plain = [v.sum() / totals.tokens for v in told]
        return value, torch.stack([*averaged, *plain, gap.abs().max()]).detach().double()


def by_name(part: Any, offered: dict[str, Any]) -> dict[str, Any]:
    """Of what is offered, what the part needs."""
    return {k: v for k, v in offered.items() if k in BY_NAME & part.needs}


def _values(part: Any, method: Any, arguments: tuple[Tensor, ...], offered: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What the part's method and, if it has one, its `clipped` give a token."""
    more, count = by_name(part, offered), len(arguments[0])
    found, clipped = _checked(part, method(*arguments, **more), count), getattr(part, "clipped", None)
    if clipped is None:
        return found, torch.zeros_like(arguments[0])
    return found, _checked(part, clipped(*arguments, **more), count).float()


def _checked(part: object, found: Any, count: int) -> Tensor:
    """What a part gave, if it is a value a token."""
    if not isinstance(found, Tensor) or found.shape != (count,):
        shape = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise UsageError(
            f"{inspect.getsourcefile(type(part))}: {type(part).__name__} gave {shape} for {count} tokens; it must give one "
            f"float a token, a tensor of shape ({count},)"
        )
    return found


def summary(sums: dict[str, float]) -> dict[str, float]:
    """An update's `SUMS` as they are logged: `correction_ess`, the share of the tokens that weights of this spread are worth
    ((mean of w)**2 / mean of w**2), in the place of the sum that it is made of."""
    square = sums["correction_square"]
    ess = sums["correction_mean"] ** 2 / square if square else 0.0
    return {k: v for k, v in sums.items() if k != "correction_square"} | {"correction_ess": ess}
