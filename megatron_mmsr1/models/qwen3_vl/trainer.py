"""Qwen3-VL in the trainer: transformers' vision tower in front of megatron-core's Qwen3.

megatron-bridge 0.6.2 has a tower of its own, which needs transformer-engine and whose mergers have the tanh approximation of
GELU where the model was trained with the exact one. The tower here is transformers' own: only the language model's weights
are mapped by that bridge, the tower's keep their names.
"""

# pyright: standard
# megatron.bridge and megatron.core have no types.

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.conversion.param_mapping import ReplicatedMapping
from megatron.bridge.models.qwen_vl.qwen3_vl_bridge import Qwen3VLBridge
from megatron.bridge.models.qwen_vl.qwen3_vl_provider import Qwen3VLModelProvider
from megatron.core.parallel_state import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from torch import Tensor, nn
from transformers import AutoModel, Qwen3VLForConditionalGeneration

from megatron_mmsr1.models._policy import PolicyModel
from megatron_mmsr1.models.qwen3_vl import deepstack
from megatron_mmsr1.models.qwen3_vl.rotary import InterleavedRotary


class Model(PolicyModel):
    """A feature is a row of H values for the embedding and, behind them, H for each of the first D decoder layers."""

    def __init__(self, config: Any, pre_process: bool = True, post_process: bool = True, vp_stage: int | None = None) -> None:
        super().__init__(config, pre_process, post_process, vp_stage)
        self.language_model.rotary_pos_emb = InterleavedRotary(
            config.kv_channels, config.rotary_percent, rotary_base=config.rotary_base
        )
        if pre_process:
            deepstack.install(self.decoder.layers[: len(self.visual.deepstack_merger_list)])

    def build_tower(self, vision_config: Any) -> nn.Module:
        return AutoModel.from_config(vision_config)

    def encode(self, pixels: Tensor, grids: Tensor) -> Tensor:
        """Features [N, (1 + D) * H]."""
        found = self.visual(pixels, grid_thw=grids)
        return torch.cat([found.pooler_output, *found.deepstack_features], dim=-1)

    def decoder_arguments(self, features: Tensor, positions: Tensor, tokens: int) -> dict[str, Tensor]:
        hidden = self.config.hidden_size
        return deepstack.arguments(
            features[:, hidden:].unflatten(1, (-1, hidden)),
            positions,
            tokens=tokens,
            tp_rank=get_tensor_model_parallel_rank(),
            tp_size=get_tensor_model_parallel_world_size(),
            split=self.config.sequence_parallel,
        )


@dataclass
class Provider(Qwen3VLModelProvider):
    """megatron-bridge's description of the model, building ours."""

    def provide(self, pre_process: Any = None, post_process: Any = None, vp_stage: Any = None) -> Any:
        return Model(self, pre_process=pre_process, post_process=post_process, vp_stage=vp_stage)


def with_our_tower(registry: MegatronMappingRegistry) -> MegatronMappingRegistry:
    """megatron-bridge's mapping of weights, with the tower's own names for its tower's."""
    kept = [m for m in registry.mappings if not m.megatron_param.startswith("vision_model.")]
    return MegatronMappingRegistry(*kept, ReplicatedMapping(megatron_param="visual.**", hf_param="model.visual.**"))


class Bridge(Qwen3VLBridge):
    """config.json and weights of Qwen3-VL, to megatron-core and back."""

    def provider_bridge(self, hf_pretrained: Any) -> Provider:
        base = super().provider_bridge(hf_pretrained)
        return Provider(**{f.name: getattr(base, f.name) for f in fields(base) if f.init})

    def mapping_registry(self) -> MegatronMappingRegistry:
        return with_our_tower(super().mapping_registry())


_registry: Any = MegatronModelBridge
_registry.register_bridge(source=Qwen3VLForConditionalGeneration, target=Model, provider=Provider, model_type="qwen3_vl")(
    Bridge
)
