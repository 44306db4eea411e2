"""Recipes by name: what `algorithm.name` in the config may be."""

from __future__ import annotations

from megatron_mmsr1.algorithm.recipe import Recipe, broken_rules
from megatron_mmsr1.plugins.registry import Registry

REGISTRY: Registry[Recipe] = Registry("recipe", __name__, "RECIPE", key="algorithm.name", check=broken_rules)
get = REGISTRY.get
