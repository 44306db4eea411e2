"""Qwen3-VL with mixtures of experts (arXiv 2511.21631): the dense family but for its feed-forward layers."""

from __future__ import annotations

from dataclasses import replace

from megatron_mmsr1.models.qwen3_vl import FAMILY as DENSE

FAMILY = replace(
    DENSE,
    name="qwen3_vl_moe",
    architectures=("Qwen3VLMoeForConditionalGeneration",),
    trainer="megatron_mmsr1.models.qwen3_vl_moe.trainer:Provider",
)
