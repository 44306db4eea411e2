"""How many decoder layers each pipeline stage gets, so that all of them take about as long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_mmsr1.cluster.fits import experts_of, text_of
from megatron_mmsr1.config import MegatronConfig

# Of a micro-batch's tokens: a picture's, and those whose logits are computed. Assumed, from the mean trajectory of
# docs/recipes.md: 1,000 and 400 of 3,300. `megatron.pipeline_split` is for whoever measures others.
PICTURE, SCORED = 0.3, 0.12


def split(m: MegatronConfig, config: Mapping[str, Any], *, first: int, trains_tower: bool) -> list[int]:
    """Layers of each chunk of the model that config.json describes: `divided`. The `first` layers stand beside the tower."""
    beside = beside_layers(config, trains_tower=trains_tower)
    return divided(m, int(text_of(config)["num_hidden_layers"]), first=first, beside=beside)


def divided(m: MegatronConfig, total: int, *, first: int, beside: tuple[float, float]) -> list[int]:
    """Layers of each chunk in the model's order, `pipeline_parallel` x `virtual_pipeline` of them: as `pipeline_split` says or,
    without it, one layer after the other for the chunk that has the least to do. The `first` layers stand in the first chunk;
    `beside` is what `beside_layers` tells. The layout must have passed `fits.check`."""
    if m.pipeline_split is not None:
        return list(m.pipeline_split)
    chunks = m.pipeline_parallel * m.virtual_pipeline
    before, behind = beside
    layers = [max(first, 1)] + [1] * (chunks - 1)
    for _ in range(total - sum(layers)):
        cost = [n + before * (i == 0) + behind * (i == chunks - 1) for i, n in enumerate(layers)]
        least = min(cost)
        # Of equal ones the last: the earlier a stage, the more micro-batches' activations it holds at a time.
        layers[max(i for i, c in enumerate(cost) if c <= least + 1e-9)] += 1
    return layers


def beside_layers(config: Mapping[str, Any], *, trains_tower: bool) -> tuple[float, float]:
    """What the tower and the output layer cost in decoder layers, a token of the pack on average. The embedding only looks up.
    A frozen tower counts nothing: its features are kept. Attention to other tokens is left out of all three."""
    layer = layer_parameters(config)
    if not layer:
        return 0.0, 0.0
    text = text_of(config)
    head = int(text["vocab_size"]) * int(text["hidden_size"])
    return PICTURE * tower_parameters(config) / layer * trains_tower, SCORED * head / layer


def picture_cost(config: Mapping[str, Any], *, trains_tower: bool) -> float:
    """What a token of a picture costs in the tower, in tokens of text that pass through the decoder forwards and backwards. A
    frozen tower runs forwards only, a third of both. 0 where config.json does not say."""
    decoder = layer_parameters(config) * int(text_of(config).get("num_hidden_layers") or 0)
    return tower_parameters(config) / decoder * (1.0 if trains_tower else 1 / 3) if decoder else 0.0


def layer_parameters(config: Mapping[str, Any]) -> int:
    """Those of a decoder layer's matrices that a token passes through; 0 where config.json does not say."""
    text = text_of(config)
    hidden, heads = int(text.get("hidden_size") or 0), int(text.get("num_attention_heads") or 0)
    if not hidden or not heads:
        return 0
    head = int(text.get("head_dim") or hidden // heads)
    attention = hidden * head * 2 * (heads + int(text.get("num_key_value_heads") or heads))
    if experts_of(config):
        width = int(text["num_experts_per_tok"]) * int(text["moe_intermediate_size"])
    else:
        width = int(text.get("intermediate_size") or 0)
    return attention + 3 * hidden * width


def tower_parameters(config: Mapping[str, Any]) -> int:
    """Those that the patches of one token of a picture pass through, each patch's counted; 0 where config.json does not say."""
    vision: Mapping[str, Any] = config.get("vision_config") or {}
    hidden = int(vision.get("embed_dim") or vision.get("hidden_size") or 0)
    wide = int(vision.get("intermediate_size") or hidden * (vision.get("mlp_ratio") or 0))
    matrices = 3 if "window_size" in vision else 2  # Qwen2.5-VL's tower has gated feed-forward layers
    block = 4 * hidden * hidden + matrices * hidden * wide
    return int(vision.get("spatial_merge_size") or 2) ** 2 * int(vision.get("depth") or 0) * block
