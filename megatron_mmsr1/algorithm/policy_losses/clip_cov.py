"""Clip-Cov: PPO's clip, and no gradient for a few tokens of high covariance of log-prob and advantage."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from megatron_mmsr1.algorithm.covariance import chosen, covariances
from megatron_mmsr1.algorithm.policy_losses.clip import Clip
from megatron_mmsr1.algorithm.policy_losses.clip import Settings as ClipSettings
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "clip_cov"
    low: float = Field(default=0.2, ge=0, description="the ratio is clipped at 1 - low")
    high: float = Field(default=0.2, ge=0, description="the ratio is clipped at 1 + high")
    share: float = Field(default=2e-4, gt=0, le=1, description="share of the update's tokens to hold, at least one")
    cov_low: float = Field(default=1.0, description="tokens of a covariance above this may be drawn")
    cov_high: float = Field(default=5.0, description="and below this")
    seed: int = Field(default=0, description="of the draw")


class ClipCov:
    """The loss of `clip`, times 0 for max(share * N, 1) tokens drawn by lot of those with cov_low < covariance < cov_high that
    the clip leaves free; N is the number of tokens of the update (arXiv 2505.22617)."""

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"old", "selected"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clip = Clip(ClipSettings(low=settings.low, high=settings.high))

    def select(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
        """The tokens to hold."""
        s, cov = self.settings, covariances(logprobs, advantages)
        free = ~self.clip.clipped(logprobs.detach(), old_logprobs, advantages, torch.tensor([0, len(cov)]))
        return chosen(free & (cov > s.cov_low) & (cov < s.cov_high), max(int(s.share * len(cov)), 1), s.seed)

    def losses(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cu_seqlens: Tensor, *, selected: Tensor
    ) -> Tensor:
        return self.clip.losses(logprobs, old_logprobs, advantages, cu_seqlens) * (~selected).float()

    def clipped(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cu_seqlens: Tensor, *, selected: Tensor
    ) -> Tensor:
        return self.clip.clipped(logprobs, old_logprobs, advantages, cu_seqlens) | selected


POLICY_LOSS = ClipCov
