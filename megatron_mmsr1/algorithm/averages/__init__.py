"""From a loss a token to one number: which tokens count how much."""

from __future__ import annotations

from megatron_mmsr1.algorithm.parts import Average, contract
from megatron_mmsr1.plugins.registry import Registry

REGISTRY: Registry[type[Average]] = Registry(
    "average", __name__, "AVERAGE", key="algorithm.average.name", check=contract("shares")
)
get = REGISTRY.get
