"""Qwen2.5-VL in the trainer: transformers' vision tower in front of megatron-core's Qwen2; the bridge is megatron-bridge's."""

# pyright: standard
# megatron.bridge and megatron.core have no types.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron.bridge.models.qwen_vl.qwen25_vl_provider import Qwen25VLModelProvider
from torch import nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from megatron_mmsr1.models._policy import PolicyModel


class Model(PolicyModel):
    def build_tower(self, vision_config: Any) -> nn.Module:
        return Qwen2_5_VisionTransformerPretrainedModel._from_config(vision_config)


@dataclass
class Provider(Qwen25VLModelProvider):
    """megatron-bridge's description of the model, building ours."""

    def provide(self, pre_process: Any = None, post_process: Any = None, vp_stage: Any = None) -> Any:
        return Model(self, pre_process=pre_process, post_process=post_process, vp_stage=vp_stage)
