"""KL-Cov (arXiv 2505.22617): a few tokens that drive the entropy down pay for moving. Use `updates_per_step` above 1."""

from __future__ import annotations

from megatron_mmsr1.algorithm.recipe import Recipe

RECIPE = Recipe(
    advantage={"name": "grpo"},
    correction={"name": "none"},
    policy_loss={"name": "kl_cov"},
    kl={"name": "k3"},
    average={"name": "token"},
)
