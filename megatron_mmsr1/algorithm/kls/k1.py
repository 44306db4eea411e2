"""The estimator k1: the log-ratio itself."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from megatron_mmsr1.config.section import Section

MAX_LOG_RATIO = 20.0


class Settings(Section):
    name: str = "k1"


class K1:
    """logprobs - ref_logprobs, clamped to +-20: unbiased, of either sign. Its gradient to `logprobs` is 1 at every token, which
    says nothing of the reference: as a term of the loss use k2 or k3."""

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"reference"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def penalty(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        return (logprobs.float() - ref_logprobs.detach().float()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


KL = K1
