"""A policy that sees no pictures: what the trainer halves of text-only families build on.

Rotary positions are multimodal ones whose three rows are equal, which is the same as plain ones: so that packs, and positions
given by the caller, work as for every other family.
"""

# pyright: standard
# megatron.bridge and megatron.core have no types.

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.gpt_provider import GPTModelProvider

from megatron_mmsr1.models._policy import PolicyModel


class TextModel(PolicyModel):
    has_tower = False


@dataclass
class TextProvider(GPTModelProvider):
    """megatron-bridge's description of a language model, building ours of the class `model`."""

    model = TextModel

    def provide(self, pre_process: Any = None, post_process: Any = None, vp_stage: Any = None) -> Any:
        return self.model(self, pre_process=pre_process, post_process=post_process, vp_stage=vp_stage)


class TextBridge:
    """In front of megatron-bridge's own bridge of a language model: the same config.json and weights, for the model that stands
    inside of a `PolicyModel`. `provider`: what it gives."""

    provider: type[TextProvider]

    def provider_bridge(self, hf_pretrained: Any) -> TextProvider:
        bridge: Any = super()
        base = bridge.provider_bridge(hf_pretrained)
        values = {f.name: getattr(base, f.name) for f in fields(base) if f.init}
        # `PolicyModel` scatters the embeddings itself, once pictures would stand in them.
        ours = {"position_embedding_type": "mrope", "scatter_embedding_sequence_parallel": False}
        return self.provider(**(values | ours))

    def mapping_registry(self) -> MegatronMappingRegistry:
        bridge: Any = super()
        moved = []
        for m in bridge.mapping_registry().mappings:
            theirs = m.hf_param if isinstance(m.hf_param, dict) else {"hf_param": m.hf_param}
            moved.append(type(m)(megatron_param=f"language_model.{m.megatron_param}", **theirs))
        return MegatronMappingRegistry(*moved)


def register(bridge: type[TextBridge], source: type[Any], model_type: str) -> None:
    """Let megatron-bridge find it by transformers' class of the model, and by ours."""
    registry: Any = MegatronModelBridge
    given = bridge.provider
    registry.register_bridge(source=source, target=given.model, provider=given, model_type=model_type)(bridge)
