"""The loss of supervised fine-tuning."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "nll"


class NegativeLogLikelihood:
    """-logprobs; advantages and old log-probs are not read. The weight of a token is the average's to apply."""

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset()
    without_advantage = True

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def losses(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cu_seqlens: Tensor) -> Tensor:
        return -logprobs.float()


POLICY_LOSS = NegativeLogLikelihood
