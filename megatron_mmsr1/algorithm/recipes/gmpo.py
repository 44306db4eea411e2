"""GMPO (arXiv 2507.20673): the geometric mean of a response's clipped ratios."""

from __future__ import annotations

from megatron_mmsr1.algorithm.recipe import Recipe

RECIPE = Recipe(
    advantage={"name": "grpo"},
    correction={"name": "none"},
    policy_loss={"name": "gmpo"},
    kl={"name": "k3"},
    average={"name": "sequence"},
)
