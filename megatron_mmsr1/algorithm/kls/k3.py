"""The estimator k3: unbiased and never negative; GRPO's."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from megatron_mmsr1.algorithm.kls._bounds import MAX_LOG_RATIO, Bounds


class Settings(Bounds):
    name: str = "k3"


class K3:
    """With d = ref_logprobs - logprobs: exp(d) - 1 - d (arXiv 2402.03300, equation 4).

    0 only where both agree; its gradient to `logprobs` is 1 - exp(d). d is at most 20; beyond that there is no gradient.
    """

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"reference"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def penalty(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        d = (-self.settings.log_ratio(logprobs, ref_logprobs)).clamp(max=MAX_LOG_RATIO)
        return self.settings.bounded(torch.expm1(d) - d)


KL = K3
