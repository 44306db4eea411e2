"""The penalty that holds the policy near its reference."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0


def k3(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Schulman's estimator k3 of KL(policy || reference), float32 [T] (joschu.net/blog/kl-approx.html).

    With d = ref_logprobs - logprobs of the sampled tokens: exp(d) - 1 - d. Never negative, 0 only where both agree;
    its gradient to `logprobs` is 1 - exp(d). The reference gets no gradient. d is clamped to +-20 so that one token of
    a diverged policy cannot make the sum infinite; beyond that there is no gradient. 0 where `mask` is 0, NaN or not.
    """
    d = ref_logprobs.detach().float() - logprobs.float()
    if mask is not None:
        d = torch.where(mask.bool(), d, 0.0)
    d = d.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(d) - d
