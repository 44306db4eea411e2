"""The estimator k1: the log-ratio itself."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from megatron_mmsr1.algorithm.kls._bounds import Bounds


class Settings(Bounds):
    name: str = "k1"


class K1:
    """logprobs - ref_logprobs: unbiased, of either sign (joschu.net/blog/kl-approx.html). Its gradient to `logprobs` is 1 at
    every token, which says nothing of the reference: use it in the reward (`algorithm.kl_in`), in the loss one of
    the others."""

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"reference"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def penalty(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        return self.settings.bounded(self.settings.log_ratio(logprobs, ref_logprobs))


KL = K1
