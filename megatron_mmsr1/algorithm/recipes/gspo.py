"""GSPO (arXiv 2507.18071): one clipped ratio a response, averaged over responses."""

from __future__ import annotations

from megatron_mmsr1.algorithm.recipe import Recipe

RECIPE = Recipe(
    advantage={"name": "grpo"},
    correction={"name": "none"},
    policy_loss={"name": "gspo"},
    kl={"name": "k3"},
    average={"name": "sequence"},
)
