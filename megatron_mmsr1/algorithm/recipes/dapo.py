"""The loss of DAPO (arXiv 2503.14476): clip-higher and an average over tokens. The paper has no KL: `kl_coef: 0`. Its penalty
of overlong answers is a reward's, and groups without spread are left out without new samples in their place."""

from __future__ import annotations

from megatron_mmsr1.algorithm.recipe import Recipe

RECIPE = Recipe(
    advantage={"name": "grpo"},
    correction={"name": "none"},
    policy_loss={"name": "clip", "low": 0.2, "high": 0.28},
    kl={"name": "k3"},
    average={"name": "token"},
)
