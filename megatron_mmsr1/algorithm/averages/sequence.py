"""GRPO's own average (arXiv 2402.03300, equation 3): a response's mean over its tokens, then the mean over the responses."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from megatron_mmsr1.algorithm.parts import Totals
from megatron_mmsr1.algorithm.responses import owner, sums
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "sequence"


class SequenceMean:
    """Each response weighs the same; a token of a long response weighs less than one of a short response."""

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def shares(self, token_weights: Tensor, cu_seqlens: Tensor, totals: Totals) -> Tensor:
        weights = token_weights.float()
        own = weights / sums(weights, cu_seqlens)[owner(cu_seqlens)]
        return own / totals.sequences


AVERAGE = SequenceMean
