"""The sizes of a model, from its config.json. What a released config.json leaves out has transformers' default of its
family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from megatron_mmsr1.cluster.stages import beside_layers
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.models import ModelFiles

FAMILIES = ("qwen2", "qwen3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")


@dataclass(frozen=True)
class Tower:
    """A vision tower of transformers: `depth` blocks of `width`, then mergers of `merge` x `merge` patches to the language
    model's width `out`; `mergers` counts the one of the features and those of inner layers (Qwen3-VL). `patch_values`: numbers
    a patch."""

    kind: Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
    depth: int
    width: int
    ffn: int
    heads: int
    patch_values: int
    merge: int
    out: int
    mergers: int = 1
    positions: int = 0


@dataclass(frozen=True)
class Dimensions:
    """A decoder of `layers` layers of width `hidden`: `heads` query heads and `groups` key-value heads of size `head`,
    feed-forward width `ffn` (of one expert, where there are `experts`, of which a token goes to `chosen`). The `first` layers
    stand beside the tower; `beside`: what a trained tower and the output layer count in layers (`cluster/stages.py`)."""

    layers: int
    hidden: int
    heads: int
    groups: int
    head: int
    ffn: int
    vocabulary: int
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    experts: int = 0
    chosen: int = 0
    tower: Tower | None = None
    first: int = 0
    beside: tuple[float, float] = (0.0, 0.0)

    @property
    def query(self) -> int:
        """Numbers a token in the queries of a layer."""
        return self.heads * self.head

    @property
    def keys(self) -> int:
        """Numbers a token in the keys of a layer, and in the values."""
        return self.groups * self.head


def of_files(files: ModelFiles) -> Dimensions:
    """UsageError for a family whose layers are not known here, or a config.json without one of its sizes."""
    name, config = files.family.name, files.config
    if name not in FAMILIES:
        raise UsageError(f"model.path: the sizes of family {name} are not known; known are {', '.join(FAMILIES)}")
    text = config.get("text_config") or config
    third = name.startswith("qwen3")
    heads = _size(text, "num_attention_heads", files)
    hidden = _size(text, "hidden_size", files)
    moe = name.endswith("_moe")
    return Dimensions(
        layers=_size(text, "num_hidden_layers", files),
        hidden=hidden,
        heads=heads,
        groups=int(text.get("num_key_value_heads") or heads),
        head=int(text.get("head_dim") or (128 if third else hidden // heads)),
        ffn=_size(text, "moe_intermediate_size" if moe else "intermediate_size", files),
        vocabulary=_size(text, "vocab_size", files),
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        qkv_bias=not third,
        qk_norm=third,
        experts=_size(text, "num_experts" if "num_experts" in text else "num_local_experts", files) if moe else 0,
        chosen=_size(text, "num_experts_per_tok", files) if moe else 0,
        tower=_tower(name.removesuffix("_moe"), config, hidden) if files.family.sees_pictures else None,
        first=files.family.layers_beside_tower(config),
        beside=beside_layers(config, trains_tower=True),
    )


def _size(section: dict[str, Any], key: str, files: ModelFiles) -> int:
    value = section.get(key)
    if not isinstance(value, int):
        raise UsageError(f"model.path: config.json of {files.path} does not say {key}")
    return value


def _tower(name: str, config: dict[str, Any], hidden: int) -> Tower:
    v: dict[str, Any] = config.get("vision_config") or {}

    def size(key: str, default: int) -> int:
        return int(v.get(key, default))

    patch = size("patch_size", 16 if name == "qwen3_vl" else 14)
    values = size("in_channels", size("in_chans", 3)) * size("temporal_patch_size", 2) * patch**2
    merge = size("spatial_merge_size", 2)
    if name == "qwen2_vl":
        width = size("embed_dim", 1280)
        ffn, out = int(width * v.get("mlp_ratio", 4)), size("hidden_size", hidden)
        return Tower("qwen2_vl", size("depth", 32), width, ffn, size("num_heads", 16), values, merge, out)
    if name == "qwen2_5_vl":
        width, ffn = size("hidden_size", 1280), size("intermediate_size", 3420)
        out = size("out_hidden_size", hidden)
        return Tower("qwen2_5_vl", size("depth", 32), width, ffn, size("num_heads", 16), values, merge, out)
    return Tower(
        "qwen3_vl",
        size("depth", 27),
        size("hidden_size", 1152),
        size("intermediate_size", 4304),
        size("num_heads", 16),
        values,
        merge,
        size("out_hidden_size", hidden),
        mergers=1 + len(v.get("deepstack_visual_indexes", (8, 16, 24))),
        positions=size("num_position_embeddings", 2304),
    )
