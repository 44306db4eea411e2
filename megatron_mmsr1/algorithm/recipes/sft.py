"""Supervised fine-tuning: the weighted mean of the negative log-likelihood over the demonstrations' own tokens."""

from __future__ import annotations

from megatron_mmsr1.algorithm.recipe import Recipe

RECIPE = Recipe(policy_loss={"name": "nll"}, average={"name": "token"}, supervised=True)
