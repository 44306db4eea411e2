"""Clip-Cov (arXiv 2505.22617): a few tokens that drive the entropy down are held. The paper has no KL: `kl_coef: 0`."""

from __future__ import annotations

from megatron_mmsr1.algorithm.recipe import Recipe

RECIPE = Recipe(
    advantage={"name": "grpo"},
    correction={"name": "none"},
    policy_loss={"name": "clip_cov"},
    kl={"name": "k3"},
    average={"name": "token"},
)
