"""What rewards that are made of others share."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.reward.base import Reward, checked, name_of
from megatron_mmsr1.trajectory import Trajectory


class Several(Reward):
    """Holds `rewards`. In the worker's own process if all of them may be; many calls at once if any of them waits."""

    def __init__(self, settings: Any, parts: Sequence[Section]) -> None:
        from megatron_mmsr1.reward import from_settings

        super().__init__(settings)
        self.rewards = [from_settings(p) for p in parts]
        self.in_process = all(r.in_process for r in self.rewards)

    @property
    def waits(self) -> bool:
        return any(r.waits for r in self.rewards)

    def keep_files_in(self, directory: Path) -> None:
        for r in self.rewards:
            r.keep_files_in(directory)

    def asked(
        self, rewards: Sequence[Reward], trajectory: Trajectory, then: Callable[[list[dict[str, float]]], dict[str, float]]
    ) -> dict[str, float] | Awaitable[dict[str, float]]:
        """`then` of what each gives; to be awaited only where one of them is."""
        values = [r.parts(trajectory) for r in rewards]
        if not any(map(inspect.isawaitable, values)):
            return then([checked(r, v) for r, v in zip(rewards, values, strict=True)])

        async def wait() -> dict[str, float]:
            found = await asyncio.gather(*(_value(v) for v in values))
            return then([checked(r, v) for r, v in zip(rewards, found, strict=True)])

        return wait()


def most_demanding(parts: Sequence[Section]) -> float:
    """The highest `min_success` of these rewards."""
    from megatron_mmsr1.reward import min_success

    return max(min_success(p) for p in parts)


def label_of(settings: Section) -> str:
    """What a reward is called in the logs: its name, of one from a file or a module the class."""
    return name_of(settings).rpartition(":")[2]


async def _value(value: dict[str, float] | Awaitable[dict[str, float]]) -> dict[str, float]:
    return await value if inspect.isawaitable(value) else value
