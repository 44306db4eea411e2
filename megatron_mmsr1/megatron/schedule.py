"""The learning rate of a step: warm-up, then constant, linear, cosine or sigmoid."""

from __future__ import annotations

import math

from megatron_mmsr1.config import OptimizerConfig


def learning_rate(cfg: OptimizerConfig, step: int, total_steps: int) -> float:
    """The rate of step `step` (0 is the first). It climbs linearly to `lr` over `warmup_steps` steps, the first of which is
    already above zero, then falls to `min_lr` at the last of `total_steps`."""
    if step < cfg.warmup_steps:
        return cfg.lr * (step + 1) / cfg.warmup_steps
    if cfg.schedule == "constant":
        return cfg.lr
    if cfg.schedule == "sigmoid":
        at = cfg.decay_at
        return cfg.min_lr + (cfg.lr - cfg.min_lr) / (1 + math.exp(min((step - at) / (0.1 * at), 700.0)))
    span = max(total_steps - 1 - cfg.warmup_steps, 1)
    done = min((step - cfg.warmup_steps) / span, 1.0)
    left = 1 - done if cfg.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return cfg.min_lr + (cfg.lr - cfg.min_lr) * left
