"""Advantage estimators: from the rewards of a batch of rollouts to a number each."""

from __future__ import annotations

from megatron_mmsr1.algorithm.advantages.grpo import group_normalized
from megatron_mmsr1.algorithm.parts import Advantage, contract
from megatron_mmsr1.plugins.registry import Registry

REGISTRY: Registry[type[Advantage]] = Registry(
    "advantage", __name__, "ADVANTAGE", key="algorithm.advantage.name", check=contract("estimate")
)
get = REGISTRY.get

__all__ = ["REGISTRY", "get", "group_normalized"]
