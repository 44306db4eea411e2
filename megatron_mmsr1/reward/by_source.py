"""Another reward for each source of the data, by the row's `data_source`.

reward:
  name: by_source
  routes:
    - {source: "*mmsearch_r1*", reward: mmsearch}
    - {source: "*open-r1*", reward: {name: math, format_penalty: 0.2}}
    - {source: "*", reward: mmsearch}
"""

from __future__ import annotations

from collections.abc import Awaitable
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.plugins.settings import PartSettings
from megatron_mmsr1.reward._several import Several, most_demanding
from megatron_mmsr1.reward.base import Reward
from megatron_mmsr1.trajectory import Trajectory


class Route(Section):
    source: str = Field(min_length=1, description="a pattern of the row's data_source: * any text, ? any character")
    reward: Annotated[SerializeAsAny[Section], PartSettings("megatron_mmsr1.reward", "mmsearch")]


class Settings(Section):
    name: str = "by_source"
    routes: list[Route] = Field(
        min_length=1, description="patterns of data_source and their rewards; the first that fits counts"
    )


class BySource(Several):
    """What the first fitting route's reward gives; `data_source` is compared as it stands, capitals too. A source that no route
    fits ends the run."""

    Settings = Settings

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, [r.reward for r in settings.routes])

    @classmethod
    def min_success(cls, settings: Any) -> float:
        return most_demanding([part.reward for part in settings.routes])

    def parts(self, trajectory: Trajectory) -> dict[str, float] | Awaitable[dict[str, float]]:
        return self.asked([self._reward(trajectory.data_source)], trajectory, lambda found: found[0])

    def _reward(self, source: str) -> Reward:
        """Raises UsageError if no route fits."""
        for route, reward in zip(self.settings.routes, self.rewards, strict=True):
            if fnmatchcase(source, route.source):
                return reward
        known = ", ".join(r.source for r in self.settings.routes)
        raise UsageError(f'reward.routes: none fits data_source {source!r} (there are {known}); "*" at the end fits the rest')


REWARD = BySource
