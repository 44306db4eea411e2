"""Rewards, one file each: `reward.name` in the config names one, the section's other keys are its settings.

    reward: {name: mmsearch, search_penalty: 0.2}

`rollout/scoring.py` runs them beside the rollout: one that hangs or dies costs its trajectory the reward, never the run.
"""

from __future__ import annotations

from typing import Any

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.plugins.registry import Registry
from megatron_mmsr1.plugins.settings import named_settings
from megatron_mmsr1.reward.base import Reward, broken_rules, checked, name_of, resolved
from megatron_mmsr1.trajectory import Trajectory

REGISTRY: Registry[type[Reward]] = Registry("reward", __name__, "REWARD", key="reward.name", check=broken_rules)

__all__ = ["REGISTRY", "Reward", "from_settings", "get", "keep", "min_success", "read_settings", "score_trajectory"]


def get(name: str, **options: Any) -> Reward:
    """The reward of this name under these settings; `score` and `parts` score with it.

    Raises UsageError for a name or an option that is not there, and naming file and rule for a reward that breaks the contract.
    """
    return from_settings(named_settings(REGISTRY, name, options))


def read_settings(plain: dict[str, Any]) -> Section:
    """The settings from plain data that a config's `reward` section was written as. Raises UsageError as `get` does."""
    return get(str(plain["name"]), **{k: v for k, v in plain.items() if k != "name"}).settings


def from_settings(settings: Section) -> Reward:
    """The reward that a config's `reward` section describes."""
    return REGISTRY.get(name_of(settings))(settings)


def min_success(settings: Section) -> float:
    """`Reward.min_success` of the reward that a config's `reward` section describes, which is not made."""
    return REGISTRY.get(name_of(settings)).min_success(settings)


def score_trajectory(trajectory: Trajectory, settings: Section) -> None:
    """Set `reward` and `reward_parts` in this process; None and empty if the engine or a tool let the model down on the way,
    whatever it then made of it: no reward speaks of an outage."""
    trajectory.reward, trajectory.reward_parts = None, {}
    if trajectory.infrastructure_failure:
        return
    reward = from_settings(settings)
    keep(trajectory, checked(reward, resolved(reward.parts(trajectory))))


def keep(trajectory: Trajectory, values: dict[str, float]) -> None:
    """What a reward gave, as the trajectory holds it."""
    trajectory.reward = values["reward"]
    trajectory.reward_parts = {k: v for k, v in values.items() if k != "reward"}
