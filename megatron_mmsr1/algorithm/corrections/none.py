"""No correction: the engine's log-probs are logged, not used."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "none"


class NoCorrection:
    """1 everywhere."""

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def weights(self, old_logprobs: Tensor, engine_logprobs: Tensor, cu_seqlens: Tensor) -> Tensor:
        return torch.ones_like(old_logprobs, dtype=torch.float32)


CORRECTION = NoCorrection
