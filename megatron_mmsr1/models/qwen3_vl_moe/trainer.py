"""Qwen3-VL's mixtures of experts in the trainer: the dense family's model over megatron-core's mixture layers.

The router's logits and softmax are float32. Experts are spread over `megatron.expert_parallel` ranks, and each of them is split
over `megatron.expert_tensor_parallel`. There is no load-balancing loss.
"""

# pyright: standard
# megatron.bridge and megatron.core have no types.

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.qwen_vl.qwen3_vl_bridge import Qwen3VLMoEBridge
from megatron.bridge.models.qwen_vl.qwen3_vl_provider import Qwen3VLMoEModelProvider
from transformers import Qwen3VLMoeForConditionalGeneration

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.models.qwen3_vl.trainer import Model, with_our_tower


class MoeModel(Model):
    """A class of its own, because megatron-bridge finds the weights' mapping by it."""


@dataclass
class Provider(Qwen3VLMoEModelProvider):
    """megatron-bridge's description of the model, building ours."""

    def provide(self, pre_process: Any = None, post_process: Any = None, vp_stage: Any = None) -> Any:
        return MoeModel(self, pre_process=pre_process, post_process=post_process, vp_stage=vp_stage)


class Bridge(Qwen3VLMoEBridge):
    """config.json and weights of Qwen3-VL's mixtures, to megatron-core and back."""

    def provider_bridge(self, hf_pretrained: Any) -> Provider:
        base = super().provider_bridge(hf_pretrained)
        if base.decoder_sparse_step != 1 or base.mlp_only_layers:
            raise UsageError(
                "model.path: config.json has dense layers among its mixtures of experts (decoder_sparse_step, "
                "mlp_only_layers); this trainer knows only models whose every layer is a mixture"
            )
        width = base.moe_ffn_hidden_size or 0
        if base.hidden_size in (width, 2 * width):
            # Released checkpoints have these matrices [in, out], others [out, in]; the shape alone says which.
            raise UsageError(
                f"model.path: an expert's matrices of this model are square (hidden_size {base.hidden_size}, "
                f"moe_intermediate_size {width}), so that it cannot be told which way round they are stored"
            )
        provider = Provider(**{f.name: getattr(base, f.name) for f in fields(base) if f.init})
        provider.moe_router_load_balancing_type, provider.moe_aux_loss_coeff = "none", 0.0
        return provider

    def mapping_registry(self) -> MegatronMappingRegistry:
        return with_our_tower(super().mapping_registry())


_registry: Any = MegatronModelBridge
_registry.register_bridge(
    source=Qwen3VLMoeForConditionalGeneration, target=MoeModel, provider=Provider, model_type="qwen3_vl_moe"
)(Bridge)
