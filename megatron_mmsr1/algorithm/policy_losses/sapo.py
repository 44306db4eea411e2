"""SAPO: a smooth gate in the place of the clip."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from megatron_mmsr1.algorithm.responses import log_ratio
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "sapo"
    tau_pos: float = Field(default=1.0, gt=0, description="how sharply the gate closes where the advantage is positive")
    tau_neg: float = Field(default=1.05, gt=0, description="the same elsewhere; larger, as these tokens destabilise more")


class Sapo:
    """-A * (4 / tau) * sigmoid(tau * (r - 1)), tau = tau_pos where A > 0, else tau_neg (arXiv 2511.20347).

    On policy (r = 1) the gradient is -A, as of any other loss; its size falls as r leaves 1 to either side and is 0 nowhere.
    The loss itself is -2 A / tau there, so that its level says nothing. The log-ratio is clamped to +-20.
    """

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"old"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def losses(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cu_seqlens: Tensor) -> Tensor:
        gain = advantages.float()
        tau = torch.where(gain > 0, self.settings.tau_pos, self.settings.tau_neg)
        ratio = log_ratio(logprobs, old_logprobs).exp()
        return -gain * 4 / tau * torch.sigmoid(tau * (ratio - 1))


POLICY_LOSS = Sapo
