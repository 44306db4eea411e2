"""Dr.GRPO's average (arXiv 2503.20783, section 3.2): a response's sum over a constant, then the mean over the responses."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from megatron_mmsr1.algorithm.parts import Totals
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "constant"
    tokens: int = Field(default=1024, gt=0, description="the constant, in tokens; the budget of a response, say")


class ConstantLength:
    """As `token`, each token weighs the same, but a batch of short responses has a smaller gradient than one of long ones."""

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def shares(self, token_weights: Tensor, cu_seqlens: Tensor, totals: Totals) -> Tensor:
        return token_weights.float() / (totals.sequences * self.settings.tokens)


AVERAGE = ConstantLength
