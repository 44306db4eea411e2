"""IcePop: tokens on which engine and trainer differ too much are left out."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from megatron_mmsr1.algorithm.corrections._ratios import outside, ratios, within
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "icepop"
    low: float = Field(default=0.5, ge=0, description="a token of a smaller ratio has weight 0")
    high: float = Field(default=5.0, gt=0, description="a token of a larger ratio has weight 0")


class IcePop:
    """r = exp(old - engine) where low <= r <= high, else 0 (Ring-1T, arXiv 2510.18855): a token on which the two models
    disagree teaches nothing, instead of being pulled to a bound. It still counts in the average.
    """

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"old", "engine"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def weights(self, old_logprobs: Tensor, engine_logprobs: Tensor, cu_seqlens: Tensor) -> Tensor:
        return within(ratios(old_logprobs, engine_logprobs, cu_seqlens), self.settings.low, self.settings.high)

    def clipped(self, old_logprobs: Tensor, engine_logprobs: Tensor, cu_seqlens: Tensor) -> Tensor:
        return outside(ratios(old_logprobs, engine_logprobs, cu_seqlens), self.settings.low, self.settings.high)


CORRECTION = IcePop
