"""CISPO: the clipped ratio is a weight, so that every token keeps a gradient."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from megatron_mmsr1.algorithm.responses import log_ratio
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "cispo"
    low: float = Field(default=1.0, ge=0, description="the weight is at least 1 - low; 1 bounds nothing")
    high: float = Field(default=4.0, ge=0, description="the weight is at most 1 + high")


class Cispo:
    """-clip(r, 1 - low, 1 + high) * A * logprobs, no gradient through the ratio r (arXiv 2506.13585, equation 4)."""

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"old"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def losses(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cu_seqlens: Tensor) -> Tensor:
        weight = self._ratio(logprobs, old_logprobs).clamp(1 - self.settings.low, 1 + self.settings.high)
        return -weight * advantages.float() * logprobs.float()

    def clipped(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Where the weight is at a bound; the gradient there is smaller, not 0."""
        ratio = self._ratio(logprobs, old_logprobs)
        return (ratio < 1 - self.settings.low) | (ratio > 1 + self.settings.high)

    def _ratio(self, logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
        return log_ratio(logprobs.detach(), old_logprobs).exp()


POLICY_LOSS = Cispo
