"""CISPO (arXiv 2506.13585): clipped ratios as weights, so that every token keeps a gradient. It has no KL: `kl_coef: 0`."""

from __future__ import annotations

from megatron_mmsr1.algorithm.recipe import Recipe

RECIPE = Recipe(
    advantage={"name": "grpo"},
    correction={"name": "none"},
    policy_loss={"name": "cispo"},
    kl={"name": "k3"},
    average={"name": "token"},
)
