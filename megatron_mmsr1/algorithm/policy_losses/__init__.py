"""Policy losses: what each sampled token's log-prob costs, before averaging."""

from __future__ import annotations

from megatron_mmsr1.algorithm.parts import PolicyLoss, contract
from megatron_mmsr1.plugins.registry import Registry

REGISTRY: Registry[type[PolicyLoss]] = Registry(
    "policy_loss",
    __name__,
    "POLICY_LOSS",
    key="algorithm.policy_loss.name",
    check=contract("losses"),
    renamed={"ppo_clip": "clip"},
)
get = REGISTRY.get
