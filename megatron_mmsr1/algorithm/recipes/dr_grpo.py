"""Dr.GRPO (arXiv 2503.20783): no division by the deviation, sums over a constant. The paper's runs set `kl_coef: 0`."""

from __future__ import annotations

from megatron_mmsr1.algorithm.recipe import Recipe

RECIPE = Recipe(
    advantage={"name": "dr_grpo"},
    correction={"name": "none"},
    policy_loss={"name": "clip"},
    kl={"name": "k3"},
    average={"name": "constant"},
)
