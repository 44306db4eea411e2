"""Whether a model's config.json divides over the ranks as `megatron:` lays it out. megatron-core would say it only once the
engine has started, and not by the setting's name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_mmsr1.config import MegatronConfig
from megatron_mmsr1.config.lora import LoraConfig
from megatron_mmsr1.errors import UsageError

# What tensor parallelism splits, and the key of config.json that counts it.
SPLIT = {
    "attention heads": "num_attention_heads",
    "key-value heads": "num_key_value_heads",
    "vocabulary entries": "vocab_size",
    "feed-forward units": "intermediate_size",
}


def text_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's section of config.json; older ones have it at the top level."""
    return {**config, **(config.get("text_config") or {})}


def experts_of(config: Mapping[str, Any]) -> int:
    """How many experts a layer has; 0 of a dense model. Released checkpoints and transformers 5 name the number differently."""
    text = text_of(config)
    return int(text.get("num_experts") or text.get("num_local_experts") or 0)


def check(m: MegatronConfig, config: Mapping[str, Any], *, first: int = 0) -> None:
    """Raises UsageError that names the setting and the number that it does not divide. `first`: so many of the first layers
    must stand beside the vision tower."""
    for said in problems(m, config, first=first):
        raise UsageError(said)


def check_lora(lora: LoraConfig | None, config: Mapping[str, Any]) -> None:
    """UsageError for adapters of a mixture's experts."""
    wide = [t for t in (lora.targets if lora else ()) if t in ("gate_up_proj", "down_proj")]
    if wide and experts_of(config):
        raise UsageError(
            f"model.lora.targets names {', '.join(wide)}, which are experts in this model, a mixture, and take no adapters "
            "here: set model.lora.targets=[qkv_proj, o_proj]"
        )


def problems(m: MegatronConfig, config: Mapping[str, Any], *, first: int = 0) -> Iterator[str]:
    """A sentence for each size that does not divide."""
    text, tp = text_of(config), m.tensor_parallel
    experts = experts_of(config)
    for what, key in SPLIT.items():
        n = text.get(key)
        if isinstance(n, int) and n % tp and not (experts and key == "intermediate_size"):
            yield f"megatron.tensor_parallel={tp}: the model's {n} {what} do not divide over {tp} ranks"
    yield from _experts(m, experts, text.get("moe_intermediate_size"))
    layers = text.get("num_hidden_layers")
    if isinstance(layers, int):
        yield from stages(m, layers, first)


def _experts(m: MegatronConfig, experts: int, width: int | None) -> Iterator[str]:
    ep, etp = m.expert_parallel, m.expert_tensor
    if not experts:
        if ep > 1 or etp != m.tensor_parallel:
            name = f"expert_parallel={ep}" if ep > 1 else f"expert_tensor_parallel={etp}"
            yield f"megatron.{name}: this model has no experts; leave it out"
        return
    if m.tensor_parallel > 1 and not m.sequence_parallel:
        yield (
            f"megatron.tensor_parallel={m.tensor_parallel}: megatron-core trains a mixture of experts under tensor parallelism "
            "with sequence parallelism only; set megatron.sequence_parallel: true"
        )
    if experts % ep:
        yield f"megatron.expert_parallel={ep}: the model's {experts} experts do not divide over {ep} ranks"
    if width and width % etp:
        name = "tensor_parallel" if m.expert_tensor_parallel is None else "expert_tensor_parallel"
        yield f"megatron.{name}={etp}: the model's {width} feed-forward units of an expert do not divide over {etp} ranks"


def stages(m: MegatronConfig, layers: int, first: int) -> Iterator[str]:
    """A sentence for a pipeline that so many layers do not fill, the `first` of them in its first chunk."""
    chunks, split = m.pipeline_parallel * m.virtual_pipeline, m.pipeline_split
    name = f"megatron.pipeline_parallel={m.pipeline_parallel}"
    name += f" with virtual_pipeline={m.virtual_pipeline}" * (m.virtual_pipeline > 1)
    beside = f"the first {first} layers of this model take features of the vision tower and must stand with it"
    if split is None and layers < max(first, 1) + chunks - 1:
        more = f", and {beside}" if first > 1 else ""
        yield f"{name}: the model's {layers} layers are too few for {chunks} chunks{more}; use fewer stages"
    elif split is not None and (sum(split) != layers or min(split) < 1):
        yield f"megatron.pipeline_split={split}: the model has {layers} layers, and each chunk needs one"
    elif split is not None and split[0] < first:
        yield f"megatron.pipeline_split={split}: {beside}; give the first chunk {first}"
