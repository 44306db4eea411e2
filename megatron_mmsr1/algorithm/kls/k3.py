"""The estimator k3: unbiased and never negative; GRPO's."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from megatron_mmsr1.config.section import Section

MAX_LOG_RATIO = 20.0


class Settings(Section):
    name: str = "k3"


class K3:
    """With d = ref_logprobs - logprobs: exp(d) - 1 - d (arXiv 2402.03300, equation 4).

    0 only where both agree; its gradient to `logprobs` is 1 - exp(d). d is clamped to +-20 so that one token of a diverged
    policy cannot make the sum infinite; beyond that there is no gradient.
    """

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"reference"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def penalty(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        d = (ref_logprobs.detach().float() - logprobs.float()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return torch.expm1(d) - d


KL = K3
