"""Rewards, one file each: `reward.name` in the config names the module.

A reward module defines `reward(trajectory, cfg) -> dict[str, float]` with at least the key "reward"; the other keys
are logged. It sees finished trajectories only, and may be called from several threads.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from megatron_mmsr1.config import RewardConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.trajectory import Trajectory

Reward = Callable[[Trajectory, RewardConfig], dict[str, float]]


def get(name: str) -> Reward:
    """The reward of this name. UsageError that lists the names there are."""
    known = sorted(m.name for m in pkgutil.iter_modules(__path__))
    if name not in known:
        raise UsageError(f"reward.name={name}: no such reward; there are {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{name}").reward


def score_trajectory(trajectory: Trajectory, cfg: RewardConfig) -> None:
    """Set `reward` and `reward_parts`; None and empty if the engine or a tool let the model down on the way, whatever it then
    made of it: no reward speaks of an outage."""
    trajectory.reward, trajectory.reward_parts = None, {}
    if trajectory.infrastructure_failure:
        return
    values = get(cfg.name)(trajectory, cfg)
    trajectory.reward = values["reward"]
    trajectory.reward_parts = {k: v for k, v in values.items() if k != "reward"}
