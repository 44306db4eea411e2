"""Whether a model's config.json divides over the ranks as `megatron:` lays it out: megatron-core would say it only after the
engine has started. megatron/provider.py checks again what it builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import UsageError

# What tensor parallelism splits, and the key of config.json that counts it.
SPLIT = {
    "attention heads": "num_attention_heads",
    "key-value heads": "num_key_value_heads",
    "vocabulary entries": "vocab_size",
    "feed-forward units": "intermediate_size",
    "feed-forward units of an expert": "moe_intermediate_size",
}


def layout(cfg: RunConfig) -> None:
    """Raises UsageError that names the setting and the number that it does not divide."""
    from megatron_mmsr1.models import of_checkpoint

    files = of_checkpoint(cfg.model.path, cfg.model.family)
    raw = files.config
    text: Mapping[str, Any] = {**raw, **(raw.get("text_config") or {})}
    tp, pp = cfg.megatron.tensor_parallel, cfg.megatron.pipeline_parallel
    for what, key in SPLIT.items():
        n = text.get(key)
        if isinstance(n, int) and n % tp:
            raise UsageError(f"megatron.tensor_parallel={tp}: the model's {n} {what} do not divide over {tp} ranks")
    layers = text.get("num_hidden_layers")
    if isinstance(layers, int) and not cfg.megatron.provider:  # native fields may split unevenly
        if layers % pp:
            raise UsageError(f"megatron.pipeline_parallel={pp}: the model's {layers} layers do not divide over {pp} stages")
        files.check_first_stage(layers // pp, pp)
