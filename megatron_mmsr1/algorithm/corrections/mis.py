"""Masked importance sampling: tokens, or whole responses, whose ratio is out of bounds are left out."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from megatron_mmsr1.algorithm.corrections._ratios import Level, outside, ratios, within
from megatron_mmsr1.algorithm.responses import owner, sums
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "mis"
    low: float = Field(default=0.5, ge=0, description="a smaller ratio has weight 0")
    high: float = Field(default=2.0, gt=0, description="a larger ratio has weight 0")
    level: Level = Field(
        default="token", description="the ratio of a token, or its response's: their product, or geometric mean"
    )
    veto: float | None = Field(
        default=None, gt=0, description="a response with a token of a ratio below this is left out whole (1e-4, say)"
    )


class Masked:
    """The ratio of this level where low <= ratio <= high, else 0 (Liu et al., "When speed kills stability", 2025).

    The product over a long response leaves any bounds: for `level: sequence` keep responses short or bounds wide; for
    `level: geometric` they are narrow (0.999 and 1.002, say). What is left out still counts in the average.
    """

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"old", "engine"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def weights(self, old_logprobs: Tensor, engine_logprobs: Tensor, cu_seqlens: Tensor) -> Tensor:
        raw = ratios(old_logprobs, engine_logprobs, cu_seqlens, self.settings.level)
        return within(raw, self.settings.low, self.settings.high) * ~self._vetoed(old_logprobs, engine_logprobs, cu_seqlens)

    def clipped(self, old_logprobs: Tensor, engine_logprobs: Tensor, cu_seqlens: Tensor) -> Tensor:
        raw = ratios(old_logprobs, engine_logprobs, cu_seqlens, self.settings.level)
        masked = outside(raw, self.settings.low, self.settings.high)
        return masked | self._vetoed(old_logprobs, engine_logprobs, cu_seqlens)

    def _vetoed(self, old_logprobs: Tensor, engine_logprobs: Tensor, cu_seqlens: Tensor) -> Tensor:
        limit = 0.0 if self.settings.veto is None else self.settings.veto
        tiny = (ratios(old_logprobs, engine_logprobs, cu_seqlens) < limit).float()
        return (sums(tiny, cu_seqlens) > 0)[owner(cu_seqlens)]


CORRECTION = Masked
