"""GMPO: the geometric mean of a response's clipped ratios."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from megatron_mmsr1.algorithm.responses import log_ratio, means, owner
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "gmpo"
    low: float = Field(default=0.4, ge=0, description="a log-ratio is clipped at -low where the advantage is negative")
    high: float = Field(default=0.4, ge=0, description="a log-ratio is clipped at high where the advantage is positive")


class Gmpo:
    """-A * exp(mean over the response's tokens of the clipped log-ratio) (arXiv 2507.20673).

    A token's log-ratio is clipped to the side only to which its advantage pushes it. Each token has its response's value; the
    gradient goes through the mean, so that a token moves by the response's mean of A times the ratio. Average over responses.
    """

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"old"})
    refuses: ClassVar[frozenset[str]] = frozenset({"token"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def losses(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cu_seqlens: Tensor) -> Tensor:
        raw, gain = log_ratio(logprobs, old_logprobs), advantages.float()
        kept = torch.where(self.clipped(logprobs, old_logprobs, advantages, cu_seqlens), self._bound(gain), raw)
        return -gain * means(kept, cu_seqlens).exp()[owner(cu_seqlens)]

    def clipped(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Tokens that are held at their bound; the others of the response still move."""
        raw = log_ratio(logprobs.detach(), old_logprobs)
        return ((advantages > 0) & (raw > self.settings.high)) | ((advantages < 0) & (raw < -self.settings.low))

    def _bound(self, gain: Tensor) -> Tensor:
        return torch.where(gain > 0, self.settings.high, -self.settings.low)


POLICY_LOSS = Gmpo
