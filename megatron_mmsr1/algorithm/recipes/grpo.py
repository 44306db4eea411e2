"""GRPO (arXiv 2402.03300), averaged over the update's tokens as in DAPO; `average: sequence` is the paper's own."""

from __future__ import annotations

from megatron_mmsr1.algorithm.recipe import Recipe

RECIPE = Recipe(
    advantage={"name": "grpo"},
    correction={"name": "none"},
    policy_loss={"name": "clip"},
    kl={"name": "k3"},
    average={"name": "token"},
)
