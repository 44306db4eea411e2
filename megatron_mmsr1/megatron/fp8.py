"""Matrix products of the decoder layers in 8 bits: `megatron.fp8: current`.

Current scaling (transformer-engine's Float8CurrentScaling) multiplies each tensor by what its own largest value allows, so that
nothing is remembered between steps and checkpoints hold nothing of it. Values and weights are e4m3, gradients e5m2 ("hybrid").
Weights, gradients and optimizer stay as they are. In bfloat16 remain: the first and the last layer (megatron-bridge's recipe),
attention's own products, norms, embeddings, the vision tower, and the output layer, whose log-probs are float32 as ever. Every
forward pass is the same one: old log-probs, the reference's and the loss's come of the same products.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import Any

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.megatron import bridge, platform

ALIGN = 16  # rows and columns of a product must be a multiple of it
LEAST_ENGINE = (2, 2)  # transformer-engine's first version with current scaling
LEAST_GPU = (8, 9)
FIELDS: dict[str, Any] = {"fp8": "hybrid", "fp8_recipe": "tensorwise", "fp8_param": False, "first_last_layers_bf16": True}


def configure(provider: Any, cfg: RunConfig) -> None:
    """Set megatron-core's fields. UsageError for a machine or a model that cannot."""
    if cfg.megatron.fp8 == "none":
        return
    engine = metadata.version("transformer-engine") if bridge.has_transformer_engine() else None
    lacks = [*missing(cfg.model.dtype, engine, platform.attention_facts()["capability"]), *uneven(provider)]
    if lacks:
        raise UsageError(f"megatron.fp8={cfg.megatron.fp8} cannot be here: {'; '.join(lacks)}. Leave it out")
    for name, value in FIELDS.items():
        setattr(provider, name, value)


def missing(dtype: str, engine: str | None, capability: tuple[int, int]) -> Iterator[str]:
    """What machine and run lack, a phrase each. `engine`: transformer-engine's version, None where there is none."""
    if engine is None:
        yield "transformer-engine is not installed (./scripts/env.sh --gpu)"
    elif tuple(int(n) for n in engine.split(".")[:2]) < LEAST_ENGINE:
        yield f"transformer-engine {engine} has no current scaling, which {LEAST_ENGINE[0]}.{LEAST_ENGINE[1]} has"
    if capability < LEAST_GPU:
        yield "it needs a GPU of compute capability 8.9 or more (Ada, Hopper, Blackwell)"
    if dtype != "bfloat16":
        yield f"model.dtype={dtype}, not bfloat16"


def uneven(model: Any) -> Iterator[str]:
    """Widths of the model's products, as they are split over tensor-parallel ranks, that are no multiple of 16."""
    ranks = model.tensor_model_parallel_size
    head = model.kv_channels or model.hidden_size // model.num_attention_heads
    widths = {
        "hidden size": model.hidden_size,
        "heads": model.num_attention_heads * head // ranks,
        "key-value heads": model.num_query_groups * head // ranks,
    }
    if model.num_moe_experts:
        widths["expert's feed-forward width"] = model.moe_ffn_hidden_size // (model.expert_tensor_parallel_size or ranks)
    else:
        widths["feed-forward width"] = model.ffn_hidden_size // ranks
    for name, width in widths.items():
        if width % ALIGN:
            yield f"the model's {name} on a rank: {width} numbers, no multiple of {ALIGN}"
