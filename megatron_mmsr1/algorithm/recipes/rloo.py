"""RLOO (arXiv 2402.14740) with PPO's clip, for several updates a step; with one the clip never binds."""

from __future__ import annotations

from megatron_mmsr1.algorithm.recipe import Recipe

RECIPE = Recipe(
    advantage={"name": "rloo"},
    correction={"name": "none"},
    policy_loss={"name": "clip"},
    kl={"name": "k3"},
    average={"name": "token"},
)
