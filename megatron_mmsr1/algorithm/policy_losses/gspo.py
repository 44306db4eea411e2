"""GSPO: one ratio a response, clipped as a whole."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from megatron_mmsr1.algorithm.responses import means, owner
from megatron_mmsr1.config.section import Section

MAX_LOG_RATIO = 10.0


class Settings(Section):
    name: str = "gspo"
    low: float = Field(default=3e-4, ge=0, description="the response's ratio is clipped at 1 - low")
    high: float = Field(default=4e-4, ge=0, description="the response's ratio is clipped at 1 + high")


class Gspo:
    """The clipped surrogate with the response's ratio s = exp(mean over its tokens of log r) (arXiv 2507.18071, equations 5-7).

    In the form with a value a token (equation 13) each token has the ratio s in value and the gradient s * d logprobs. Its
    average is over responses, as the paper's; over tokens a long response's one ratio would count once a token.
    """

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"old"})
    refuses: ClassVar[frozenset[str]] = frozenset({"token"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def losses(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cu_seqlens: Tensor) -> Tensor:
        free, bounded = self._gains(logprobs, old_logprobs, advantages, cu_seqlens)
        return -torch.minimum(free, bounded)

    def clipped(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cu_seqlens: Tensor) -> Tensor:
        free, bounded = self._gains(logprobs, old_logprobs, advantages, cu_seqlens)
        return bounded < free

    def _gains(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
        mine = logprobs.float()
        log_s = means(mine.detach() - old_logprobs.detach().float(), cu_seqlens)[owner(cu_seqlens)]
        # The value is log s; the gradient goes to the token's own log-prob.
        ratio = (log_s + mine - mine.detach()).clamp(max=MAX_LOG_RATIO).exp()
        gain = advantages.float()
        bounded = torch.clamp(ratio, 1 - self.settings.low, 1 + self.settings.high) * gain
        return ratio * gain, bounded


POLICY_LOSS = Gspo
