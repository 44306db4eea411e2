"""The mean over all scored tokens of the update: each token weighs the same (DAPO, arXiv 2503.14476, equation 8)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from megatron_mmsr1.algorithm.parts import Totals
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "token"


class TokenMean:
    """A long response counts more than a short one, by its number of tokens. With weights, the weighted mean."""

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def shares(self, token_weights: Tensor, cu_seqlens: Tensor, totals: Totals) -> Tensor:
        return token_weights.float() / totals.weight


AVERAGE = TokenMean
