"""Qwen2.5-VL (arXiv 2502.13923)."""

from __future__ import annotations

from megatron_mmsr1.models._qwen_vl import TOKENS, QwenVL

FAMILY = QwenVL(
    "qwen2_5_vl", ("Qwen2_5_VLForConditionalGeneration",), "megatron_mmsr1.models.qwen2_5_vl.trainer:Provider", TOKENS
)
