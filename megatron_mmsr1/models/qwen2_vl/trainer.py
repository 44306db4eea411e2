"""Qwen2-VL in the trainer: transformers' vision tower in front of megatron-core's Qwen2.

megatron-bridge 0.6.2 has no bridge for it; this is one. The language model and the names of its weights are those of
Qwen2.5-VL, whose bridge it extends; the tower's weights keep their names (`visual.**`), so that only tower and
configuration differ.
"""

# pyright: standard
# megatron.bridge and megatron.core have no types.

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.qwen_vl.qwen25_vl_bridge import Qwen25VLBridge
from megatron.bridge.models.qwen_vl.qwen25_vl_provider import Qwen25VLModelProvider
from torch import nn
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from megatron_mmsr1.models._policy import PolicyModel


class Model(PolicyModel):
    def build_tower(self, vision_config: Any) -> nn.Module:
        return Qwen2VisionTransformerPretrainedModel._from_config(vision_config)


@dataclass
class Provider(Qwen25VLModelProvider):
    """A Qwen2 language model with multimodal rotary positions, behind Qwen2-VL's tower."""

    vision_config: Any = field(default_factory=Qwen2VLVisionConfig)

    def provide(self, pre_process: Any = None, post_process: Any = None, vp_stage: Any = None) -> Any:
        return Model(self, pre_process=pre_process, post_process=post_process, vp_stage=vp_stage)


class Bridge(Qwen25VLBridge):
    """config.json and weights of Qwen2-VL, to megatron-core and back."""

    def provider_bridge(self, hf_pretrained: Any) -> Provider:
        base = super().provider_bridge(hf_pretrained)
        return Provider(**{f.name: getattr(base, f.name) for f in fields(base) if f.init})


_registry: Any = MegatronModelBridge
_registry.register_bridge(source=Qwen2VLForConditionalGeneration, target=Model, provider=Provider, model_type="qwen2_vl")(
    Bridge
)
