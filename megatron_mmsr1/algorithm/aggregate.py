"""From a value a token to one number."""

from __future__ import annotations

import torch
from torch import Tensor


def token_mean(values: Tensor, mask: Tensor, global_tokens: float | Tensor) -> Tensor:
    """This micro-batch's share of the mean over every trained token of the global batch: a float32 scalar.

    sum(values where mask) / global_tokens. `global_tokens` counts the mask of all micro-batches of all data-parallel
    ranks, so the shares *sum* to the mean however the tokens were split; each token weighs the same (DAPO, arXiv
    2503.14476). Values under a mask of 0 do not matter, NaN included. Raises ValueError for a number of tokens that is
    not positive.
    """
    if not isinstance(global_tokens, Tensor) and not global_tokens > 0:
        raise ValueError(f"a mean over {global_tokens} tokens: nothing in the batch is trained on")
    return torch.where(mask.bool(), values.float(), 0.0).sum() / global_tokens
