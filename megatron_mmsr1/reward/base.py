"""What a reward is."""

from __future__ import annotations

import asyncio
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.protocol import strip_end
from megatron_mmsr1.trajectory import Status, Trajectory
from megatron_mmsr1.untyped import is_mapping


class Reward(ABC):
    """A reward under its settings. Made once a process, asked once a finished trajectory.

    It never sees a trajectory that an outage ended. What it raises, and a time-out, count as the reward's own failure: that
    trajectory has no reward and is not trained on, which is not the same as a reward of 0.
    """

    Settings: ClassVar[type[Section]]
    # Whether it may run in the rollout worker's own process: pure, and quick for any text that a model can say.
    in_process: bool = False

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    def waits(self) -> bool:
        """Whether many calls at once make sense in one process: `parts` is `async`."""
        return inspect.iscoroutinefunction(self.parts)

    @classmethod
    def min_success(cls, settings: Any) -> float:
        """The share of a step's trajectories that it must give a reward to, 0 to 1; with less the run ends. Its setting of that
        name, else 0. A class method, for whoever asks makes no reward."""
        return getattr(settings, "min_success", 0.0)

    def keep_files_in(self, directory: Path) -> None:  # noqa: B027 (most keep none)
        """Called once before the first call in a run: where it may write, `reward/` in the run's directory. Several processes
        do, also on several nodes."""

    @abstractmethod
    def parts(self, trajectory: Trajectory) -> dict[str, float] | Awaitable[dict[str, float]]:
        """The reward under "reward", and whatever else is worth a curve in the logs; all finite. May be `async`: many are then
        in flight at once in a process, which suits a judge behind a network."""

    def score(self, turns: Sequence[str], golden_answers: Sequence[str] | str) -> dict[str, float]:
        """`parts` of a conversation given as the texts of its assistant turns; waits for an async reward. Raises UsageError for
        values that break the contract. Not for use inside an event loop if the reward is async."""
        golds = [golden_answers] if isinstance(golden_answers, str) else list(golden_answers)
        t = Trajectory("scored", "scored", 0, "", golds, status=Status.ANSWERED)
        t.append("prompt", [0], "")
        for text in turns:
            t.append("assistant", [0], text, logprobs=[0.0])
        return checked(self, resolved(self.parts(t)))


def resolved(value: dict[str, float] | Awaitable[dict[str, float]]) -> dict[str, float]:
    """The values, waited for where the reward is async."""
    if not inspect.isawaitable(value):
        return value

    async def wait() -> dict[str, float]:
        return await value

    return asyncio.run(wait())


def checked(reward: Reward, values: Any) -> dict[str, float]:
    """The values as floats. Raises UsageError that names the file and the broken rule."""
    if not is_mapping(values) or "reward" not in values:
        raise UsageError(f'{_where(reward)} gave {values!r:.200}; it must give a dict with the key "reward"')
    out: dict[str, float] = {}
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UsageError(
                f"{_where(reward)} gave {key!r}: {value!r:.200}; every value must be a finite number under a string"
            )
        out[key] = float(value)
    return out


def _where(reward: Reward) -> str:
    return f"{source(reward)}: {type(reward).__name__}.parts"


def bodies(trajectory: Trajectory) -> list[str]:
    """What the model said in each of its turns, without the marks that end one."""
    return [strip_end(t) for t in trajectory.assistant_texts]


def name_of(settings: Section) -> str:
    """Which reward a section of a config names. Not by way of a dump: this runs once a trajectory."""
    return str(vars(settings)["name"])


def source(reward: Reward) -> str:
    """The file that a reward comes from."""
    return inspect.getsourcefile(type(reward)) or type(reward).__module__


def broken_rules(name: str, reward: Any) -> list[str]:
    """The registry's check of a class."""
    if not isinstance(reward, type) or not issubclass(reward, Reward):
        return ["it must be a subclass of megatron_mmsr1.reward.Reward"]
    broken = [f"it has no method {m}" for m in sorted(getattr(reward, "__abstractmethods__", ()))]
    settings = getattr(reward, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, Section)):
        broken.append("its Settings must be a subclass of megatron_mmsr1.config.section.Section")
    elif "name" not in settings.model_fields:
        broken.append("its Settings has no name")
    return broken
