"""k3 weighed by the ratio to the old policy, which makes its gradient unbiased too."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from megatron_mmsr1.algorithm.kls._bounds import Bounds
from megatron_mmsr1.algorithm.kls.k3 import K3
from megatron_mmsr1.algorithm.kls.k3 import Settings as K3Settings
from megatron_mmsr1.algorithm.responses import log_ratio


class Settings(Bounds):
    name: str = "unbiased"


class Unbiased:
    """exp(logprobs - old_logprobs) * k3 (DeepSeek-V3.2, arXiv 2512.02556, section 3.1), the gradient through both factors.

    k3 alone has the gradient 1 - exp(d), which is unbounded where the policy left the reference's tokens; here, on policy,
    it is logprobs - ref_logprobs. Without `old_logprobs` the policy's own stand for them. The ratio's log is clamped to +-20.
    """

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset({"reference", "old"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.k3 = K3(K3Settings(input_clamp=settings.input_clamp, output_clamp=settings.output_clamp))

    def penalty(self, logprobs: Tensor, ref_logprobs: Tensor, *, old_logprobs: Tensor | None = None) -> Tensor:
        old = logprobs.detach() if old_logprobs is None else old_logprobs
        return log_ratio(logprobs, old).exp() * self.k3.penalty(logprobs, ref_logprobs)


KL = Unbiased
