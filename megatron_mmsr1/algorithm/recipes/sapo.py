"""SAPO (arXiv 2511.20347): a smooth gate in the place of the clip. The paper averages a response first."""

from __future__ import annotations

from megatron_mmsr1.algorithm.recipe import Recipe

RECIPE = Recipe(
    advantage={"name": "grpo"},
    correction={"name": "none"},
    policy_loss={"name": "sapo"},
    kl={"name": "k3"},
    average={"name": "sequence"},
)
