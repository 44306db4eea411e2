"""The clipped policy loss of PPO, as GRPO uses it; clip-higher and dual clip are settings of it."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from megatron_mmsr1.algorithm.responses import log_ratio
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "clip"
    low: float = Field(default=0.2, ge=0, description="the ratio is clipped at 1 - low")
    high: float = Field(default=0.2, ge=0, description="the ratio is clipped at 1 + high (DAPO: 0.28)")
    dual: float | None = Field(
        default=None, gt=1, description="a bound on the loss of tokens of negative advantage, times it (3, say)"
    )


class Clip:
    """PPO's clipped surrogate (arXiv 1707.06347, equation 7), negated, with a bound a side (DAPO, arXiv 2503.14476).

    With r = exp(logprobs - old_logprobs): loss = -min(r * A, clip(r, 1 - low, 1 + high) * A). Its gradient to `logprobs` is
    -r * A where the first term is the smaller, and 0 where the clip binds (A > 0 and r > 1 + high, or A < 0 and r < 1 - low).
    With `dual` c the loss of A < 0 is at most -c * A (arXiv 1912.09729, equation 5). The log-ratio is clamped to +-20, beyond
    which there is no gradient either.
    """

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"old"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def losses(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cu_seqlens: Tensor) -> Tensor:
        free, bounded = self._gains(logprobs, old_logprobs, advantages)
        loss = -torch.minimum(free, bounded)
        c = self.settings.dual
        return loss if c is None else torch.where(advantages < 0, torch.minimum(loss, -c * advantages.float()), loss)

    def clipped(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cu_seqlens: Tensor) -> Tensor:
        free, bounded = self._gains(logprobs, old_logprobs, advantages)
        c = self.settings.dual
        return bounded < free if c is None else (bounded < free) | ((advantages < 0) & (free < c * advantages))

    def _gains(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        ratio = log_ratio(logprobs, old_logprobs).exp()
        gain = advantages.float()
        return ratio * gain, ratio.clamp(1 - self.settings.low, 1 + self.settings.high) * gain


POLICY_LOSS = Clip
