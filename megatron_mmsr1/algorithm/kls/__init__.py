"""Estimates of KL(policy || reference) from the sampled tokens (joschu.net/blog/kl-approx.html)."""

from __future__ import annotations

from megatron_mmsr1.algorithm.parts import Kl, contract
from megatron_mmsr1.plugins.registry import Registry

REGISTRY: Registry[type[Kl]] = Registry("kl", __name__, "KL", key="algorithm.kl.name", check=contract("penalty"))
get = REGISTRY.get
