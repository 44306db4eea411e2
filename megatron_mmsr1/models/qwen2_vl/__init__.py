"""Qwen2-VL (arXiv 2409.12191)."""

from __future__ import annotations

from megatron_mmsr1.models._qwen_vl import TOKENS, QwenVL

FAMILY = QwenVL("qwen2_vl", ("Qwen2VLForConditionalGeneration",), "megatron_mmsr1.models.qwen2_vl.trainer:Provider", TOKENS)
