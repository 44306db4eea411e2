"""The ratios of the trainer's probabilities to the engine's."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from megatron_mmsr1.algorithm.responses import log_ratio, means, owner, sums

# sequence: the product over a response's tokens; geometric: its root, so that length does not matter.
Level = Literal["token", "sequence", "geometric"]
MAX_LOG_RATIO = 20.0


def ratios(old_logprobs: Tensor, engine_logprobs: Tensor, cu_seqlens: Tensor, level: Level = "token") -> Tensor:
    """float32 [T], no gradient: exp(old - engine), within exp(+-20), of each token or of its response."""
    gap = log_ratio(old_logprobs.detach(), engine_logprobs, MAX_LOG_RATIO)
    if level != "token":
        joined = sums(gap, cu_seqlens) if level == "sequence" else means(gap, cu_seqlens)
        gap = joined.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)[owner(cu_seqlens)]
    return gap.exp()


def within(values: Tensor, low: float, high: float) -> Tensor:
    """The values, 0 for those outside [low, high]."""
    return values.masked_fill(outside(values, low, high), 0.0)


def outside(values: Tensor, low: float, high: float) -> Tensor:
    """bool [T]: below `low`, above `high`, or no number."""
    return ~((values >= low) & (values <= high))
