"""The `model.lora` section: adapters of low rank beside frozen matrices (arXiv 2106.09685)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_mmsr1.config.section import Affects, Section

Target = Literal["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


class LoraConfig(Section):
    """No dropout: a token's log-prob would differ between the passes that the loss compares, and from the engine's."""

    AFFECTS = Affects.TRAINING

    rank: int = Field(gt=0, description="rows of A and columns of B; a multiple of megatron.tensor_parallel")
    alpha: float = Field(gt=0, description="a matrix W is used as W + alpha / rank * B A; B begins at zero")
    targets: list[Target] = Field(
        default=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
        min_length=1,
        description="matrices of each decoder layer: queries, keys and values; attention's output; the feed-forward layer's "
        "first and second. A mixture's experts take no adapters",
    )
