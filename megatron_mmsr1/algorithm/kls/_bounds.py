"""Bounds that every KL estimate may be given."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from megatron_mmsr1.config.section import Section

MAX_LOG_RATIO = 20.0  # exp of it is finite in float32; one token of a diverged policy cannot make a sum infinite


class Bounds(Section):
    input_clamp: float | None = Field(default=None, gt=0, description="the log-ratio is clamped to +- this, in nats")
    output_clamp: float | None = Field(default=None, gt=0, description="the estimate is clamped to +- this, in nats")

    def log_ratio(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        """float32 [T]: logprobs - ref_logprobs; beyond the clamp there is no gradient."""
        d = logprobs.float() - ref_logprobs.detach().float()
        return d if self.input_clamp is None else d.clamp(-self.input_clamp, self.input_clamp)

    def bounded(self, estimate: Tensor) -> Tensor:
        return estimate if self.output_clamp is None else estimate.clamp(-self.output_clamp, self.output_clamp)
