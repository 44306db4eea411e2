"""The loss of supervised fine-tuning."""

from __future__ import annotations

import torch
from torch import Tensor


def nll(logprobs: Tensor, weights: Tensor) -> Tensor:
    """Weighted negative log-likelihood, float32 [T]: -weights * logprobs.

    `weights` is the loss mask, or a weight a token (`Trajectory.loss_weights`). 0 where the weight is 0, whatever the
    log-prob is there.
    """
    w = weights.float()
    return -w * torch.where(w != 0, logprobs.float(), 0.0)
