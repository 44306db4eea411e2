"""REINFORCE++ with the group's mean as baseline (arXiv 2501.03262), and k2 as its KL."""

from __future__ import annotations

from megatron_mmsr1.algorithm.recipe import Recipe

RECIPE = Recipe(
    advantage={"name": "reinforce_pp_baseline"},
    correction={"name": "none"},
    policy_loss={"name": "clip"},
    kl={"name": "k2"},
    average={"name": "token"},
)
