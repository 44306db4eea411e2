"""The five interfaces of an algorithm, and what is checked of a class before it is used.

Every part is a class with a `Settings` (a `Section` with a `name`), made as `Part(settings)`, and a `needs`: which log-probs it
reads beside the policy's own. What no part needs is not computed. Parts are pure functions of their arguments: the same on
every rank, without randomness, without collectives.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.plugins.registry import Check, requires

if TYPE_CHECKING:
    from torch import Tensor

# old: the trainer's under the weights that sampled; reference: the frozen model's; engine: what the engine said of its samples.
NEEDS = frozenset({"old", "reference", "engine"})


class Part(Protocol):
    Settings: ClassVar[type[Section]]
    needs: ClassVar[frozenset[str]]


class Advantage(Part, Protocol):
    def estimate(self, rewards: Tensor | Sequence[float], group_ids: Tensor | Sequence[Hashable]) -> Tensor:
        """float32 [N] for N rewards. Rollouts with equal ids answer the same prompt; they may lie in any order."""
        ...


class PolicyLoss(Part, Protocol):
    """It may also have `clipped(logprobs, old_logprobs, advantages, cu_seqlens) -> Tensor`, bool [T]: where the loss has no
    gradient because it is clipped, for the metric `clip_fraction`; and `without_advantage = True` if tokens of advantage 0 have
    a gradient all the same, so that they are not left out."""

    def losses(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cu_seqlens: Tensor) -> Tensor:
        """float32 [T], differentiable in `logprobs`. All are [T] but `cu_seqlens`, int64 [S + 1]: the responses' bounds."""
        ...


class Correction(Part, Protocol):
    def weights(self, old_logprobs: Tensor, engine_logprobs: Tensor, cu_seqlens: Tensor) -> Tensor:
        """float32 [T], no gradient: what the policy loss of each token is multiplied by."""
        ...


class Kl(Part, Protocol):
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
        settings = getattr(part, "Settings", None)
        if isinstance(settings, type) and issubclass(settings, Section) and "name" not in settings.model_fields:
            broken.append("its Settings has no name")
        return broken

    return check
