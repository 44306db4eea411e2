"""Corrections of the gap between the engine's log-probs, which sampled, and the trainer's."""

from __future__ import annotations

from megatron_mmsr1.algorithm.parts import Correction, contract
from megatron_mmsr1.plugins.registry import Registry

REGISTRY: Registry[type[Correction]] = Registry(
    "correction",
    __name__,
    "CORRECTION",
    key="algorithm.correction.name",
    check=contract("weights"),
    renamed={"truncated": "tis"},
)
get = REGISTRY.get
