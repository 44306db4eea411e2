"""Qwen2.5 (arXiv 2412.15115), and Qwen2 if its tokenizer has the vision tokens, which are asked for by name; text alone."""

from __future__ import annotations

from megatron_mmsr1.models._qwen_vl import TOKENS, QwenVL

FAMILY = QwenVL("qwen2", ("Qwen2ForCausalLM",), "megatron_mmsr1.models.qwen2.trainer:Provider", TOKENS, sees_pictures=False)
