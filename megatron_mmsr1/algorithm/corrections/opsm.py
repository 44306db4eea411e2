"""Off-policy sequence masking (OPSM): bad responses that the policy would hardly give any more are left out."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from megatron_mmsr1.algorithm.responses import log_ratio, means, owner
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "opsm"
    delta: float = Field(
        default=1e-4, ge=0, description="the mean log-ratio of a response, in nats, above which it is off policy"
    )


class OffPolicyMask:
    """0 for a response whose mean advantage is negative and whose mean of (engine - logprobs) is above delta, else 1
    (DeepSeek-V3.2, arXiv 2512.02556, section 3.1). The engine's log-probs are those that sampled, so that both the engine's gap
    and the updates since then count. A response of positive advantage is never left out.

    Without `logprobs` the trainer's old ones stand for the policy's, without `advantages` every response is taken for
    a bad one.
    """

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"old", "engine", "advantages", "logprobs"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def weights(
        self,
        old_logprobs: Tensor,
        engine_logprobs: Tensor,
        cu_seqlens: Tensor,
        *,
        advantages: Tensor | None = None,
        logprobs: Tensor | None = None,
    ) -> Tensor:
        masked = self.clipped(old_logprobs, engine_logprobs, cu_seqlens, advantages=advantages, logprobs=logprobs)
        return (~masked).float()

    def clipped(
        self,
        old_logprobs: Tensor,
        engine_logprobs: Tensor,
        cu_seqlens: Tensor,
        *,
        advantages: Tensor | None = None,
        logprobs: Tensor | None = None,
    ) -> Tensor:
        now = (old_logprobs if logprobs is None else logprobs).detach()
        left = means(-log_ratio(now, engine_logprobs), cu_seqlens) > self.settings.delta
        bad = torch.ones_like(left) if advantages is None else means(advantages.float(), cu_seqlens) < 0
        return (left & bad)[owner(cu_seqlens)]


CORRECTION = OffPolicyMask
