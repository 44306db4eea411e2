"""What Qwen2-VL, Qwen2.5-VL and Qwen3-VL share: the tokenizer's vision tokens, the picture rule, the positions of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_mmsr1.data.mrope import mrope_positions
from megatron_mmsr1.models.base import Family, SpecialTokens

TOKENS = SpecialTokens("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|im_end|>", ("<|vision_pad|>", "<|video_pad|>"))


@dataclass(frozen=True)
class QwenVL(Family):
    """Families with multimodal rotary positions (arXiv 2409.12191, section 2.1)."""

    def layers_beside_tower(self, config: dict[str, Any]) -> int:
        """Qwen3-VL's: one for each layer of the tower whose features enter behind a decoder layer."""
        vision: dict[str, Any] = config.get("vision_config") or {}
        return len(vision.get("deepstack_visual_indexes") or ())

    def positions(
        self, token_ids: Sequence[int] | np.ndarray, pad_id: int, grids: Sequence[tuple[int, int, int]], merge: int
    ) -> np.ndarray:
        return mrope_positions(token_ids, pad_id, grids, merge)
