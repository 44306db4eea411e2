"""A weighted sum of other rewards, every part of each under a metric of its own.

reward:
  name: sum
  terms:
    - {weight: 1.0, reward: {name: mmsearch, search_penalty: 0.2}}
    - {weight: 0.5, reward: {name: path/to/brief.py:Brief}}
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, model_validator

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.plugins.settings import PartSettings
from megatron_mmsr1.reward._several import Several, label_of, most_demanding
from megatron_mmsr1.trajectory import Trajectory


class Term(Section):
    label: str = Field(default="", pattern=r"[\w.-]*", description="its name in the logs; default: the reward's name")
    weight: float = Field(default=1.0, allow_inf_nan=False)
    reward: Annotated[SerializeAsAny[Section], PartSettings("megatron_mmsr1.reward", "mmsearch")]


class Settings(Section):
    name: str = "sum"
    terms: list[Term] = Field(min_length=1, description="the rewards that are added up, each with its weight and label")

    @model_validator(mode="after")
    def _told_apart(self) -> Settings:
        labels = self.labels()
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"two terms are called {', '.join(twice)}: give one of them a label")
        return self

    def labels(self) -> list[str]:
        return [t.label or label_of(t.reward) for t in self.terms]


class Sum(Several):
    """reward = sum(weight * the term's reward).

    `LABEL/PART` is every part of each term, `LABEL/reward` its own reward before the weight. `acc`, `format` and what else a
    term gives also stand without a label, as the run's metrics know them; of parts of one name the first term's. A term that
    fails, fails the sum.
    """

    Settings = Settings

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, [t.reward for t in settings.terms])
        self._terms = list(zip(settings.labels(), (t.weight for t in settings.terms), strict=True))

    @classmethod
    def min_success(cls, settings: Any) -> float:
        return most_demanding([part.reward for part in settings.terms])

    def parts(self, trajectory: Trajectory) -> dict[str, float] | Awaitable[dict[str, float]]:
        return self.asked(self.rewards, trajectory, self._added)

    def _added(self, found: list[dict[str, float]]) -> dict[str, float]:
        out: dict[str, float] = {"reward": sum(w * f["reward"] for (_, w), f in zip(self._terms, found, strict=True))}
        for values in found:
            out = {k: v for k, v in values.items() if k != "reward"} | out
        return out | {
            f"{label}/{k}": v for (label, _), values in zip(self._terms, found, strict=True) for k, v in values.items()
        }


REWARD = Sum
