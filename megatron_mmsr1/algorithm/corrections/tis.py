"""Truncated importance sampling (TIS): engine and trainer are two models of the same weights, and the engine's one sampled."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from megatron_mmsr1.algorithm.corrections._ratios import Level, outside, ratios
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "tis"
    cap: float = Field(default=2.0, gt=0, description="the largest weight")
    floor: float = Field(default=0.0, ge=0, description="the smallest weight")
    level: Level = Field(
        default="token", description="the ratio of a token, or its response's: their product, or geometric mean"
    )


class Truncated:
    """min(max(exp(old - engine), floor), cap) (Yao et al., "Your efficient RL framework secretly brings you off-policy RL
    training", 2025). The log-ratio is clamped to +-20 first, so that an engine's log-prob of minus infinity gives the cap.
    """

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"old", "engine"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def weights(self, old_logprobs: Tensor, engine_logprobs: Tensor, cu_seqlens: Tensor) -> Tensor:
        raw = ratios(old_logprobs, engine_logprobs, cu_seqlens, self.settings.level)
        return raw.clamp(self.settings.floor, self.settings.cap)

    def clipped(self, old_logprobs: Tensor, engine_logprobs: Tensor, cu_seqlens: Tensor) -> Tensor:
        raw = ratios(old_logprobs, engine_logprobs, cu_seqlens, self.settings.level)
        return outside(raw, self.settings.floor, self.settings.cap)


CORRECTION = Truncated
