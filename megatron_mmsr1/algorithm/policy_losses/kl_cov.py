"""KL-Cov: no clip; the tokens of the highest covariance of log-prob and advantage pay for leaving the old policy."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from megatron_mmsr1.algorithm.covariance import covariances
from megatron_mmsr1.algorithm.responses import log_ratio
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "kl_cov"
    share: float = Field(default=2e-4, gt=0, le=1, description="share of the update's tokens that pay, at least one")
    coef: float = Field(default=1.0, ge=0, description="of |logprobs - old_logprobs| of these")


class KlCov:
    """-r * A, plus coef * |log r| for the max(share * N, 1) of the update's N tokens of the highest covariance (arXiv
    2505.22617). On policy the penalty has no gradient: it acts from the second update of a step on."""

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"old", "selected"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def select(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
        """The tokens that pay."""
        cov = covariances(logprobs, advantages)
        marked = torch.zeros(len(cov), dtype=torch.bool, device=cov.device)
        if len(cov):
            marked[cov.topk(max(int(self.settings.share * len(cov)), 1)).indices] = True
        return marked

    def losses(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cu_seqlens: Tensor, *, selected: Tensor
    ) -> Tensor:
        moved = log_ratio(logprobs, old_logprobs)
        return -moved.exp() * advantages.float() + self.settings.coef * moved.abs() * selected.float()


POLICY_LOSS = KlCov
