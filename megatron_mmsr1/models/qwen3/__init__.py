"""Qwen3, dense (arXiv 2505.09388), text alone."""

from __future__ import annotations

from megatron_mmsr1.models._qwen_vl import TOKENS, QwenVL

FAMILY = QwenVL("qwen3", ("Qwen3ForCausalLM",), "megatron_mmsr1.models.qwen3.trainer:Provider", TOKENS, sees_pictures=False)
