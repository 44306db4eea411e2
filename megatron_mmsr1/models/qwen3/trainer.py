"""Qwen3 in the trainer: megatron-core's own, under the names that a policy's language model has."""

# pyright: standard
# megatron.bridge and megatron.core have no types.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.models.qwen.qwen3_bridge import Qwen3Bridge
from transformers import Qwen3ForCausalLM

from megatron_mmsr1.models._text import TextModel, as_language_model, described


class Model(TextModel):
    pass


@dataclass
class Provider(GPTModelProvider):
    def provide(self, pre_process: Any = None, post_process: Any = None, vp_stage: Any = None) -> Any:
        return Model(self, pre_process=pre_process, post_process=post_process, vp_stage=vp_stage)


class Bridge(Qwen3Bridge):
    """config.json and weights of Qwen3, to megatron-core and back."""

    def provider_bridge(self, hf_pretrained: Any) -> Provider:
        return described(Provider, super().provider_bridge(hf_pretrained))

    def mapping_registry(self) -> MegatronMappingRegistry:
        return as_language_model(super().mapping_registry())


_registry: Any = MegatronModelBridge
_registry.register_bridge(source=Qwen3ForCausalLM, target=Model, provider=Provider, model_type="qwen3")(Bridge)
