"""Qwen3-VL, dense (arXiv 2511.21631)."""

from __future__ import annotations

from megatron_mmsr1.models._qwen_vl import TOKENS, QwenVL
from megatron_mmsr1.models.base import PictureRule

HALF = (0.5, 0.5, 0.5)

FAMILY = QwenVL(
    "qwen3_vl",
    ("Qwen3VLForConditionalGeneration",),
    "megatron_mmsr1.models.qwen3_vl.trainer:Provider",
    TOKENS,
    PictureRule(patch=16, mean=HALF, deviation=HALF),
)
