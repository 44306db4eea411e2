"""Fatal-aware GRPO (OpenSearch-VL): a rollout that failing tools broke is not blamed for it, nor taught by its rest."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from megatron_mmsr1.algorithm.advantages.grpo import group_normalized
from megatron_mmsr1.algorithm.parts import Rollout
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "fatal_aware"
    errors: int = Field(default=3, gt=0, description="failed calls in a row that make a rollout fatal")
    divide_by_std: bool = Field(default=True, description="divide by the deviation of the group's rewards")
    eps: float = Field(default=1e-6, ge=0, description="added to the deviation")


class FatalAware:
    """GRPO's advantages; every rollout counts in its group's mean and deviation. In one with `errors` failed calls in a row the
    tokens from the first of these turns on have advantage 0 and those before it at least 0; one that ended without an answer
    keeps its tokens, at an advantage of at least 0.

    Tokens of advantage 0 still count in the average. A call failed that its tool refused; failures of the infrastructure are
    left out of every update before this.
    """

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def estimate(self, rewards: Tensor | Sequence[float], group_ids: Tensor | Sequence[Hashable]) -> Tensor:
        """Of rollouts in which no call failed and that answered."""
        return group_normalized(rewards, group_ids, divide_by_std=self.settings.divide_by_std, eps=self.settings.eps)

    def per_token(self, rewards: Sequence[float], group_ids: Sequence[Hashable], rollouts: Sequence[Rollout]) -> list[Tensor]:
        found: list[Tensor] = []
        for value, rollout in zip(self.estimate(rewards, group_ids), rollouts, strict=True):
            fatal = self._first_fatal(rollout)
            kept = rollout.tokens if fatal is None else sum(t.tokens for t in rollout.turns[:fatal])
            blamed = rollout.answered and fatal is None
            tokens = torch.zeros(rollout.tokens)
            tokens[:kept] = value if blamed else value.clamp(min=0)
            found.append(tokens)
        return found

    def _first_fatal(self, rollout: Rollout) -> int | None:
        """The turn with which the first long enough row of failed calls begins."""
        row = 0
        for i, turn in enumerate(rollout.turns):
            row = row + 1 if turn.failed else 0
            if row == self.settings.errors:
                return i - row + 1
        return None


ADVANTAGE = FatalAware
