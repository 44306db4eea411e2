"""A weighted sum of other rewards.

reward:
  name: weighted
  terms:
    - {weight: 1.0, reward: {name: mmsearch, search_penalty: 0.2}}
    - {weight: 0.5, reward: {name: path/to/brief.py:Brief}}
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Annotated

from pydantic import Field, SerializeAsAny

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.plugins.settings import PartSettings
from megatron_mmsr1.reward.base import Reward, checked
from megatron_mmsr1.trajectory import Trajectory


class Term(Section):
    weight: float = Field(default=1.0, allow_inf_nan=False)
    reward: Annotated[SerializeAsAny[Section], PartSettings("megatron_mmsr1.reward", "mmsearch")]


class Settings(Section):
    name: str = "weighted"
    terms: list[Term] = Field(min_length=1, description="the rewards that are added up, each with its weight")


class Weighted(Reward):
    """reward = sum(weight * the term's reward).

    The terms' other parts keep their names; where two terms have one of the same name, the first term's counts. Each term's own
    reward is there as `term/N/reward`, N from 1. A term that fails, fails the sum.
    """

    Settings = Settings

    def __init__(self, settings: Settings) -> None:
        from megatron_mmsr1.reward import from_settings

        super().__init__(settings)
        self.terms = [(t.weight, from_settings(t.reward)) for t in settings.terms]

    async def parts(self, trajectory: Trajectory) -> dict[str, float]:
        found = await asyncio.gather(*(_parts(reward, trajectory) for _, reward in self.terms))
        out: dict[str, float] = {"reward": sum(w * f["reward"] for (w, _), f in zip(self.terms, found, strict=True))}
        for values in found:
            out = {k: v for k, v in values.items() if k != "reward"} | out
        return out | {f"term/{n}/reward": values["reward"] for n, values in enumerate(found, 1)}


async def _parts(reward: Reward, trajectory: Trajectory) -> dict[str, float]:
    values = reward.parts(trajectory)
    return checked(reward, await values if inspect.isawaitable(values) else values)


REWARD = Weighted
