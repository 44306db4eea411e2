"""Truncated importance sampling (TIS): engine and trainer are two models of the same weights, and the engine's one sampled."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from megatron_mmsr1.algorithm.responses import means, owner
from megatron_mmsr1.config.section import Section

MAX_LOG_RATIO = 20.0


class Settings(Section):
    name: str = "truncated"
    cap: float = Field(default=2.0, gt=0, description="the largest weight")
    level: Literal["token", "sequence"] = Field(
        default="token", description="a ratio a token, or a response's geometric mean of them for all of its tokens"
    )


class Truncated:
    """min(exp(old - engine), cap) (Yao et al., "Your efficient RL framework secretly brings you off-policy RL training", 2025).

    The log-ratio is clamped to +-20 first, so that an engine's log-prob of minus infinity gives a finite weight.
    """

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"old", "engine"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def weights(self, old_logprobs: Tensor, engine_logprobs: Tensor, cu_seqlens: Tensor) -> Tensor:
        gap = (old_logprobs.detach().float() - engine_logprobs.detach().float()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        if self.settings.level == "sequence":
            gap = means(gap, cu_seqlens)[owner(cu_seqlens)]
        return gap.exp().clamp(max=self.settings.cap)


CORRECTION = Truncated
