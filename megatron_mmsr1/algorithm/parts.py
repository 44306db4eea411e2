"""The five interfaces of an algorithm, and what is checked of a class before it is used.

Every part is a class with a `Settings` (a `Section` with a `name`), made as `Part(settings)`, and a `needs`: what it reads
beside the policy's own log-probs. What no part needs is not computed. Parts are pure functions of their arguments: the same on
every rank, without collectives, and by lot only from a seed of their settings.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.plugins.registry import Check, requires

if TYPE_CHECKING:
    from torch import Tensor

# Log-probs. old: the trainer's under the weights that sampled; reference: the frozen model's; engine: what the engine said of
# its samples.
LOGPROBS = frozenset({"old", "reference", "engine"})
# Passed by name to each method of a part that needs them. selected: bool [T], what `PolicyLoss.select` chose of the update;
# advantages: float32 [T]; logprobs: the policy's own, float32 [T] without gradient.
BY_NAME = frozenset({"selected", "advantages", "logprobs"})
NEEDS = LOGPROBS | BY_NAME


@dataclass(frozen=True, slots=True)
class RolloutTurn:
    """One turn of the policy."""

    tokens: int  # sampled
    key: str  # of what it answers: a hash of the tools' results before it, "" after the prompt alone
    failed: bool  # whether a call of it failed


@dataclass(frozen=True, slots=True)
class Rollout:
    """What advantages are told of a rollout beside its reward."""

    turns: tuple[RolloutTurn, ...]
    answered: bool = True

    @property
    def tokens(self) -> int:
        """Sampled ones, which are those that are scored."""
        return sum(t.tokens for t in self.turns)


class Part(Protocol):
    Settings: ClassVar[type[Section]]
    needs: ClassVar[frozenset[str]]


class Advantage(Part, Protocol):
    """It may also have `per_token(rewards, group_ids, rollouts) -> list[Tensor]`, a `Rollout` a reward: float32 [n] for the n
    sampled tokens of each rollout, where they do not all share the rollout's one value."""

    def estimate(self, rewards: Tensor | Sequence[float], group_ids: Tensor | Sequence[Hashable]) -> Tensor:
        """float32 [N] for N rewards. Rollouts with equal ids answer the same prompt; they may lie in any order."""
        ...


class PolicyLoss(Part, Protocol):
    """It may also have

    - `clipped`, with the arguments of `losses`, bool [T]: where the loss has no gradient because it is clipped, for the metric
      `clip_fraction`;
    - `without_advantage = True` if tokens of advantage 0 have a gradient all the same, so that they are not left out;
    - `refuses`, a frozenset of the names of averages that it makes no sense with;
    - `select(logprobs, old_logprobs, advantages) -> Tensor`, bool [U] for all U tokens of the update in the order of group and
      sample, however it is packed and split: what the need "selected" then gives to `losses` and `clipped`. It costs a pass."""

    def losses(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cu_seqlens: Tensor) -> Tensor:
        """float32 [T], differentiable in `logprobs`. All are [T] but `cu_seqlens`, int64 [S + 1]: the responses' bounds."""
        ...


class Correction(Part, Protocol):
    """It may also have `clipped`, with the arguments of `weights`, bool [T]: where the raw ratio is out of its bounds, for the
    metric `correction_clipped`."""

    def weights(self, old_logprobs: Tensor, engine_logprobs: Tensor, cu_seqlens: Tensor) -> Tensor:
        """float32 [T], no gradient: what the policy loss of each token is multiplied by."""
        ...


class Kl(Part, Protocol):
    """One that needs "old" gets `old_logprobs` by name."""

    def penalty(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        """float32 [T] in nats, differentiable in `logprobs`."""
        ...


@dataclass(frozen=True, slots=True)
class Totals:
    """Of one update, over every rank and micro-batch."""

    tokens: float  # scored tokens: those with a weight other than 0
    weight: float  # the sum of their weights; with a plain loss mask the same number
    sequences: float  # responses with at least one scored token


class Average(Part, Protocol):
    def shares(self, token_weights: Tensor, cu_seqlens: Tensor, totals: Totals) -> Tensor:
        """float32 [T]: the factor of each token's loss in the sum that stands for the mean over the whole update.

        `token_weights` float32 [T] (1, or a demonstration's own weight). A response is never cut over micro-batches. As the
        totals are the update's, the shares of micro-batches and ranks add up to the same mean however they are split.
        """
        ...


def contract(*methods: str) -> Check:
    """The registry's check of a class."""
    members = requires(methods=methods, attributes=("needs",))

    def check(name: str, part: Any) -> list[str]:
        if not isinstance(part, type):
            return ["it must be a class"]
        broken = members(name, part)
        needs = getattr(part, "needs", frozenset[str]())
        if not isinstance(needs, frozenset) or not needs <= NEEDS:
            broken.append(f"its needs must be a frozenset of {', '.join(sorted(NEEDS))}")
        elif "selected" in needs and not callable(getattr(part, "select", None)):
            broken.append("it needs selected but has no method select")
        settings = getattr(part, "Settings", None)
        if isinstance(settings, type) and issubclass(settings, Section) and "name" not in settings.model_fields:
            broken.append("its Settings has no name")
        return broken

    return check
