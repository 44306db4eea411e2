"""The estimator k2: half the squared log-ratio."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from megatron_mmsr1.algorithm.kls._bounds import Bounds


class Settings(Bounds):
    name: str = "k2"


class K2:
    """(logprobs - ref_logprobs)**2 / 2: never negative, biased; its gradient to `logprobs` is the log-ratio itself, which in
    the mean over the policy is the gradient of the KL (joschu.net/blog/kl-approx.html)."""

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"reference"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def penalty(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        return self.settings.bounded(self.settings.log_ratio(logprobs, ref_logprobs) ** 2 / 2)


KL = K2
