"""GiGPO: the rollout's advantage in its group, and each turn's among the turns of the group that began in the same state."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from megatron_mmsr1.algorithm.advantages.grpo import group_normalized
from megatron_mmsr1.algorithm.groups import returns
from megatron_mmsr1.algorithm.parts import Rollout
from megatron_mmsr1.algorithm.responses import split
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "gigpo"
    gamma: float = Field(default=0.95, gt=0, le=1, description="discount of a turn")
    weight: float = Field(default=1.0, ge=0, description="of the turn's advantage beside the rollout's")
    divide_by_std: bool = Field(default=False, description="divide by the deviations of both groups")
    eps: float = Field(default=1e-6, ge=0, description="added to a deviation")


class Gigpo:
    """A = A_rollout + weight * A_turn (arXiv 2505.10978, equations 3, 6, 7 and 8).

    A_rollout: the rollout's summed reward, normalised in its group. A_turn: the turn's discounted return, normalised among the
    turns of the same group that began in the same state. The state is told by the tool's result that the turn answers (a hash
    of it): first turns share the prompt, later ones only what a tool said to both, word for word. A turn alone in its state has
    A_turn 0, a rollout alone in its group A_rollout 0.
    """

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def estimate(
        self,
        rewards: Tensor | Sequence[float],
        group_ids: Tensor | Sequence[Hashable],
        rollout_ids: Sequence[Hashable] | None = None,
        keys: Sequence[Hashable] | None = None,
    ) -> Tensor:
        """A value a turn: N rewards of turns, in order within a rollout. `rollout_ids` [N] say whose, `keys` [N] in which
        state; without them every rollout has one turn, and all began alike."""
        r = [float(x) for x in rewards]
        groups = [int(g) if isinstance(g, Tensor) else g for g in group_ids]
        owners: Sequence[Hashable] = range(len(r)) if rollout_ids is None else rollout_ids
        states = [None] * len(r) if keys is None else keys
        members: dict[Hashable, list[int]] = {}
        for i, owner in enumerate(owners):
            members.setdefault((groups[i], owner), []).append(i)
        whole = self._normalized([sum(r[i] for i in m) for m in members.values()], [groups[m[0]] for m in members.values()])
        step, place = torch.zeros(len(r)), torch.zeros(len(r), dtype=torch.int64)
        for n, turns in enumerate(members.values()):
            step[turns] = torch.tensor(returns([r[i] for i in turns], self.settings.gamma))
            place[turns] = n
        own = self._normalized(step, list(zip(groups, states, strict=True)))
        return whole[place] + self.settings.weight * own

    def per_token(self, rewards: Sequence[float], group_ids: Sequence[Hashable], rollouts: Sequence[Rollout]) -> list[Tensor]:
        """The reward is the last turn's."""
        rows = [(i, t) for i, o in enumerate(rollouts) for t in range(len(o.turns))]
        last = [t == len(rollouts[i].turns) - 1 for i, t in rows]
        values = self.estimate(
            [rewards[i] if end else 0.0 for (i, _), end in zip(rows, last, strict=True)],
            [group_ids[i] for i, _ in rows],
            [i for i, _ in rows],
            [rollouts[i].turns[t].key for i, t in rows],
        )
        tokens = torch.tensor([rollouts[i].turns[t].tokens for i, t in rows], dtype=torch.int64)
        return split(values.repeat_interleave(tokens), [o.tokens for o in rollouts])

    def _normalized(self, values: Tensor | Sequence[float], groups: Sequence[Hashable]) -> Tensor:
        return group_normalized(values, groups, divide_by_std=self.settings.divide_by_std, eps=self.settings.eps)


ADVANTAGE = Gigpo
