"""The estimator k2: half the squared log-ratio."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from megatron_mmsr1.config.section import Section

MAX_LOG_RATIO = 20.0


class Settings(Section):
    name: str = "k2"


class K2:
    """(logprobs - ref_logprobs)**2 / 2: never negative, biased, its gradient to `logprobs` is the log-ratio itself, which in
    the mean over the policy is the gradient of the KL. The log-ratio is clamped to +-20; beyond that there is no gradient."""

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"reference"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def penalty(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        d = (logprobs.float() - ref_logprobs.detach().float()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return d * d / 2


KL = K2
