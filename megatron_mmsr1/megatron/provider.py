"""megatron-bridge's model description (the "provider"), configured from a RunConfig."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

import torch

from megatron_mmsr1.cluster import fits, stages
from megatron_mmsr1.config import MegatronConfig, RunConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.megatron import bridge, fp8, platform
from megatron_mmsr1.megatron.attention import choice as attention
from megatron_mmsr1.models import ModelFiles

# Fields that other settings decide; setting them natively would contradict those.
OWNED = {
    "tensor_model_parallel_size": "megatron.tensor_parallel",
    "pipeline_model_parallel_size": "megatron.pipeline_parallel",
    "context_parallel_size": "megatron.context_parallel",
    "virtual_pipeline_model_parallel_size": "megatron.virtual_pipeline",
    "pipeline_model_parallel_layout": "megatron.pipeline_split",
    "num_layers_in_first_pipeline_stage": "megatron.pipeline_split",
    "num_layers_in_last_pipeline_stage": "megatron.pipeline_split",
    "account_for_embedding_in_pipeline_split": "megatron.pipeline_split",
    "account_for_loss_in_pipeline_split": "megatron.pipeline_split",
    "sequence_parallel": "megatron.sequence_parallel",
    "recompute_granularity": "megatron.recompute",
    "fp8": "megatron.fp8",
    "fp8_recipe": "megatron.fp8",
    "fp8_param": "megatron.fp8",
    "fine_grained_activation_offloading": "megatron.offload",
    "offload_modules": "megatron.offload",
    "cpu_offloading": "megatron.offload",
    "params_dtype": "model.dtype",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "mrope_section": "the checkpoint's config.json",
    "calculate_per_token_loss": "the trainer",
    "variable_seq_lengths": "the trainer",
    "expert_model_parallel_size": "megatron.expert_parallel",
    "expert_tensor_parallel_size": "megatron.expert_tensor_parallel",
    "moe_router_load_balancing_type": "the trainer, which has no load-balancing loss",
    "moe_aux_loss_coeff": "the trainer, which has no load-balancing loss",
    "moe_z_loss_coeff": "the trainer, which has no load-balancing loss",
    "freeze_language_model": "model.freeze",
    "freeze_vision_model": "model.freeze",
    "freeze_vision_projection": "model.freeze",
}

# Fused CUDA kernels that the CPU lacks; with CUDA, the bridge's own defaults stand.
_FUSIONS = (
    "bias_activation_fusion",
    "bias_dropout_fusion",
    "masked_softmax_fusion",
    "gradient_accumulation_fusion",
    "persist_layer_norm",
    "cross_entropy_loss_fusion",
)


def configure(provider: Any, cfg: RunConfig, files: ModelFiles) -> None:
    """Set parallelism, precision, recompute and the native fields of `megatron.provider` on a fresh provider.

    Raises UsageError for an unknown or owned native field, and for a model that does not divide over the ranks.
    """
    m = cfg.megatron
    dtype = getattr(torch, cfg.model.dtype)
    provider.tensor_model_parallel_size = m.tensor_parallel
    provider.pipeline_model_parallel_size = m.pipeline_parallel
    provider.context_parallel_size = m.context_parallel
    provider.sequence_parallel = m.sequence_parallel
    provider.expert_model_parallel_size, provider.expert_tensor_parallel_size = m.expert_parallel, m.expert_tensor
    provider.moe_token_dispatcher_type = "alltoall"  # ranks' micro-batches differ in length, which allgather does not take
    provider.params_dtype = provider.pipeline_dtype = provider.autocast_dtype = dtype
    provider.bf16, provider.fp16 = dtype is torch.bfloat16, False
    # Gradients are sums of shares that the loss has already divided by the global token count.
    provider.calculate_per_token_loss = True
    # Interleaved stages of a pipeline of two have one neighbour on both sides, whose messages a batch would mix up.
    provider.batch_p2p_comm = platform.has_cuda() and m.virtual_pipeline == 1
    provider.overlap_p2p_comm = m.virtual_pipeline > 1
    provider.mrope_section = _mrope_section(files.config)
    provider.apply_rope_fusion = False  # NVIDIA's kernel; rope.py takes its place once the model is built
    provider.attention_dropout = provider.hidden_dropout = 0.0
    if m.recompute == "full":
        provider.recompute_granularity, provider.recompute_method, provider.recompute_num_layers = "full", "uniform", 1
    elif m.recompute == "selective":
        provider.recompute_granularity = "selective"
    if not platform.has_cuda():
        provider.use_cpu_initialization = True
        for name in _FUSIONS:
            setattr(provider, name, False)
    if not bridge.has_transformer_engine():
        from megatron_mmsr1.megatron.layers import local_block

        provider.transformer_layer_spec = local_block
        provider.gradient_accumulation_fusion = provider.persist_layer_norm = False
        provider.moe_grouped_gemm = provider.moe_permute_fusion = False  # experts one after the other
    fp8.configure(provider, cfg)
    _native(provider, m.provider)
    kernel = attention.chosen(cfg, provider).kernel
    if kernel.attend is not None:
        from megatron_mmsr1.megatron.attention.layer import with_kernel

        provider.transformer_layer_spec = with_kernel(provider.transformer_layer_spec, kernel.name)
    if provider.moe_token_dispatcher_type == "allgather":
        raise UsageError(
            "megatron.provider.moe_token_dispatcher_type=allgather wants micro-batches of one length: use alltoall"
        )
    first = files.family.layers_beside_tower(files.config)
    fits.check(m, files.config, first=first)
    fits.check_lora(cfg.model.lora, files.config)
    _stages(provider, m, stages.split(m, files.config, first=first, trains_tower=not cfg.model.vision_frozen))
    try:
        provider.finalize()
    except (AssertionError, ValueError) as e:
        raise UsageError(f"megatron: megatron-core refuses this model configuration: {e}") from e
    # Pipeline stages exchange the shape of each micro-batch. After finalize, which would judge it by a dispatcher of
    # mixture-of-experts models that dense models do not use.
    # Interleaved stages have micro-batches of one length (`MegatronActor.micro_batches`).
    provider.variable_seq_lengths = m.pipeline_parallel > 1 and m.virtual_pipeline == 1


def _stages(provider: Any, m: MegatronConfig, layers: list[int]) -> None:
    """So many decoder layers for each chunk, the embedding in the first and the loss in the last."""
    if m.pipeline_parallel == 1:
        return
    chunks = [["decoder"] * n for n in layers]
    chunks[0].insert(0, "embedding")
    chunks[-1].append("loss")
    provider.pipeline_model_parallel_layout = chunks
    provider.virtual_pipeline_model_parallel_size = m.virtual_pipeline if m.virtual_pipeline > 1 else None


def _native(provider: Any, fields: dict[str, Any]) -> None:
    known = [f.name for f in dataclasses.fields(provider) if f.init and not f.name.startswith("_")]
    for name, value in fields.items():
        if name in OWNED:
            where = "" if OWNED[name].startswith("the ") else "; set it there"
            raise UsageError(f"megatron.provider.{name}: this is decided by {OWNED[name]}{where}")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "see megatron.core's TransformerConfig"
            raise UsageError(f"unknown key megatron.provider.{name}: {hint}")
        setattr(provider, name, value)


def _mrope_section(hf_config: dict[str, Any]) -> list[int]:
    """The checkpoint's own split of the rotary dimensions; megatron-bridge 0.6.2 assumes a head size of 128. UsageError for one
    whose frequencies are scaled (as for contexts longer than it was trained with), which nothing here would do."""
    text = hf_config.get("text_config", hf_config)
    alone = "vision_config" not in hf_config  # the three rows of positions are equal: all angles are of the first
    for section in (text, hf_config):
        rope = section.get("rope_parameters") or section.get("rope_scaling") or {}
        if "mrope_section" in rope or (alone and rope):
            kind = rope.get("rope_type") or rope.get("type") or "default"
            if kind not in ("default", "mrope"):
                raise UsageError(f"model.path: config.json scales rotary positions ({kind}), which this trainer does not")
            if not alone:
                return list(rope["mrope_section"])
    if alone:
        head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        return [head // 2, 0, 0]
    raise UsageError("model.path: config.json has no mrope_section in its rope parameters")
