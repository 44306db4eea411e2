"""Qwen2.5-VL on megatron-core: our forward pass around megatron-bridge's model and weight conversion."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron.bridge import AutoBridge
from megatron.bridge.models.qwen_vl.modeling_qwen25_vl import Qwen25VLModel
from megatron.bridge.models.qwen_vl.qwen25_vl_provider import Qwen25VLModelProvider
from megatron.core.distributed import DistributedDataParallelConfig, finalize_model_grads
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.parallel_state import get_tensor_model_parallel_group
from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
from torch import Tensor

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.megatron import hf, platform, rope
from megatron_mmsr1.megatron.provider import configure

# What the last stage makes of its hidden states, given the output layer's weight [vocabulary / tp, H].
Head = Callable[[Tensor, Tensor], Tensor]


class PolicyModel(Qwen25VLModel):
    """One pipeline stage (or the whole) of the policy. Positions and image features come from the caller, so that no stage
    works them out again."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        packed: PackedSeqParams,
        features: Tensor | None = None,
        feature_positions: Tensor | None = None,
        head: Head | None = None,
    ) -> Tensor:
        """input_ids int64 [1, T], position_ids int64 [3, 1, T]; features [N, H] stand at tokens feature_positions int64 [N].

        Returns `head(hidden [T, 1, H] (T / tp under sequence parallelism), output weight)` on the last stage, the stage's
        hidden states on the others.
        """
        embeddings = None
        if self.pre_process:
            embeddings = self.language_model.embedding(input_ids=input_ids, position_ids=None)  # [T, 1, H]
            if features is not None and feature_positions is not None:
                values = features.to(embeddings.dtype).unsqueeze(1)
                embeddings = embeddings.index_copy(0, feature_positions, values)
            if self.config.sequence_parallel:
                embeddings = scatter_to_sequence_parallel_region(embeddings, group=get_tensor_model_parallel_group())
        return self.language_model(
            input_ids=None,
            position_ids=position_ids,
            attention_mask=None,
            decoder_input=embeddings,
            packed_seq_params=packed,
            output_processor=_with_head,
            output_processor_context=head,
        )


def _with_head(*, hidden_states: Tensor, output_layer: Any, output_weight: Tensor | None, context: Head, **_: Any) -> Tensor:
    return context(hidden_states, output_layer.weight if output_weight is None else output_weight)


@dataclasses.dataclass
class PolicyProvider(Qwen25VLModelProvider):
    """megatron-bridge's provider, building our model."""

    def provide(self, pre_process: Any = None, post_process: Any = None, vp_stage: Any = None) -> PolicyModel:
        model = PolicyModel(self, pre_process=pre_process, post_process=post_process, vp_stage=vp_stage)
        model.freeze(self.freeze_language_model, self.freeze_vision_model, self.freeze_vision_projection)
        return model


@dataclasses.dataclass
class Built:
    """A model on this rank: `chunks` as megatron-core's schedules take them, `core` without wrappers, the bridge for export."""

    bridge: AutoBridge
    chunks: list[Any]
    core: PolicyModel

    @property
    def config(self) -> Any:
        return self.core.config


def build(cfg: RunConfig, path: Path, *, trainable: bool, key: str = "model.path") -> Built:
    """Load the Hugging Face checkpoint at `path` onto this rank's share of the model.

    A trainable model is wrapped for data parallelism; one that is not takes no gradients. Raises UsageError for a path that is
    no Qwen2.5-VL checkpoint or does not divide over the ranks, RunError for a missing or damaged shard or weight.
    """
    hf_config = hf.read_config(path, key)
    names = hf.weight_names(path)
    bridge = AutoBridge.from_hf_pretrained(str(path))
    base: Any = bridge.to_megatron_provider(load_weights=False)
    provider = PolicyProvider(**{f.name: getattr(base, f.name) for f in dataclasses.fields(base) if f.init})
    provider.perform_initialization = False
    provider.freeze_vision_model = provider.freeze_vision_projection = cfg.model.freeze_vision
    configure(provider, cfg, hf_config)
    provider.register_pre_wrap_hook(lambda chunks: _load(bridge, chunks, names, path))
    ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=cfg.megatron.distributed_optimizer, grad_reduce_in_fp32=True, overlap_grad_reduce=False
    )
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars and parameter counts, from every rank
        chunks = provider.provide_distributed_model(
            ddp_config=ddp,
            wrap_with_ddp=trainable,
            use_cpu_initialization=not platform.has_cuda(),
            fp16=False,
            bf16=provider.bf16,
        )
    core = _unwrap(chunks[0])
    rope.install()
    core.config.apply_rope_fusion = True
    # The loss has divided by the global token count already: no token count reaches this.
    core.config.finalize_model_grads_func = lambda models, _, **kwargs: finalize_model_grads(models, None, **kwargs)
    if not trainable:
        core.requires_grad_(False)
    return Built(bridge, chunks, core)


def _load(bridge: AutoBridge, chunks: list[Any], names: set[str], path: Path) -> list[Any]:
    """Weights into the bare model. megatron-bridge only warns about a missing one, so they are compared first."""
    wanted: set[str] = set()
    for task in bridge.get_conversion_tasks(chunks):
        if task is not None:
            source = task.mapping.hf_param
            wanted |= {source} if isinstance(source, str) else set(source.values())
    missing = sorted(n for n in wanted if n not in names)
    if missing:
        raise RunError(f"{path} lacks {len(missing)} weights, first {missing[0]}: download or export the checkpoint again")
    try:
        bridge.load_hf_weights(chunks)
    except ValueError as e:
        raise UsageError(f"{path}: its weights do not have the shapes that its config.json says: {e}") from e
    return chunks


def _unwrap(module: Any) -> PolicyModel:
    while not isinstance(module, PolicyModel):
        module = module.module
    return module
