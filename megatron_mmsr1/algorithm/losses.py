"""The clipped policy loss of PPO and GRPO, a value a token."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0  # e**20 = 4.9e8 is finite in float32 and far beyond any ratio worth an update


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate (arXiv 1707.06347, equation 7), negated, with a bound a side (DAPO, arXiv 2503.14476).

    With r = exp(logprobs - old_logprobs): loss = -min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A). Its gradient
    to `logprobs` is -r * A where the first term is the smaller, and 0 where the clip binds (A > 0 and r > 1 +
    clip_high, or A < 0 and r < 1 - clip_low). The log-ratio is clamped to +-20, beyond which there is no gradient
    either.

    All arguments are [T]; `advantages` has a value a token; `mask` is bool or 0/1. Returns the float32 loss [T], 0
    where masked (whatever the log-probs are there, NaN included), and float32 [T], 1 where the clip binds.
    """
    keep = mask.bool()
    log_ratio = torch.where(keep, logprobs.float() - old_logprobs.float(), 0.0)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    gain = torch.where(keep, advantages.float(), 0.0)
    free = ratio * gain
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * gain
    return -torch.minimum(free, bounded), (bounded < free).float()
