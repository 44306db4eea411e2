"""REINFORCE++: discounted returns of the tokens, normalised over the whole batch instead of the group."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from megatron_mmsr1.algorithm.groups import Groups, whitened
from megatron_mmsr1.algorithm.parts import Rollout
from megatron_mmsr1.algorithm.responses import split
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "reinforce_pp"
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount of a sampled token; observations are skipped")


class ReinforcePp:
    """The return of the j-th of a rollout's n sampled tokens is gamma**(n - 1 - j) * r; the advantage is that, less the mean,
    over the deviation, both over all sampled tokens of the step (arXiv 2501.03262). Groups play no part.

    `estimate` gives the rollouts of one token each.
    """

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def estimate(self, rewards: Tensor | Sequence[float], group_ids: Tensor | Sequence[Hashable]) -> Tensor:
        return whitened(Groups(rewards, group_ids).rewards).to(torch.float32)

    def per_token(self, rewards: Sequence[float], group_ids: Sequence[Hashable], rollouts: Sequence[Rollout]) -> list[Tensor]:
        r, gamma = Groups(rewards, group_ids).rewards, self.settings.gamma
        tokens = [x * gamma ** torch.arange(o.tokens - 1, -1, -1, dtype=r.dtype) for x, o in zip(r, rollouts, strict=True)]
        flat = whitened(torch.cat(tokens)) if tokens else r
        return split(flat.to(torch.float32), [len(t) for t in tokens])


ADVANTAGE = ReinforcePp
