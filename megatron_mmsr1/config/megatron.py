"""The `megatron:` section: how the model is laid out over ranks, and how it is computed there."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from megatron_mmsr1.config.section import Affects, Section, Training


class OffloadConfig(Section):
    """What waits in the host's memory instead of the GPU's."""

    AFFECTS = Affects.MACHINE

    optimizer: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of Adam's moments (8 bytes a parameter of the shard), brought to the GPU tensor by tensor",
    )
    activations: bool = Field(
        default=False, description="the inputs of decoder layers, from forward to backward pass; with recompute: full"
    )


class MegatronConfig(Section):
    AFFECTS = Affects.MACHINE

    tensor_parallel: int = Field(default=1, gt=0)
    pipeline_parallel: int = Field(default=1, gt=0)
    virtual_pipeline: int = Field(
        default=1,
        gt=0,
        description="chunks of layers that each pipeline stage holds in turns: above 1 stages wait less and exchange more",
    )
    pipeline_split: list[int] | None = Field(
        default=None,
        description="decoder layers of each stage (of each chunk in the model's order, with virtual_pipeline); null: so that "
        "stages cost alike, the vision tower and the output layer counted",
    )
    context_parallel: int = Field(
        default=1,
        gt=0,
        description="ranks that hold the tokens of each micro-batch together, two chunks of each sequence a rank",
    )
    sequence_parallel: bool = False
    expert_parallel: int = Field(
        default=1, gt=0, description="ranks over which a mixture's experts are spread, of those of one pipeline stage"
    )
    expert_tensor_parallel: int | None = Field(
        default=None,
        gt=0,
        description="ranks over which each expert's matrices are split; null: 1 where experts are spread, else tensor_parallel",
    )
    recompute: Literal["none", "selective", "full"] = "none"
    distributed_optimizer: Training[bool] = Field(
        default=True,
        description="shard the optimizer over data- and context-parallel ranks; a checkpoint loads only under its own setting",
    )
    overlap_grad_reduce: bool = Field(
        default=False,
        description="gradients are summed over data- and context-parallel ranks bucket by bucket, while the last micro-batch's "
        "backward pass goes on; with a frozen vision tower. Not yet run on a GPU",
    )
    tokens_per_microbatch: int = Field(
        default=8192, gt=0, description="packing budget of one micro-batch, over all of its ranks"
    )
    share_prefixes: bool | None = Field(
        default=None,
        description="what trajectories of a micro-batch begin with alike (their group's prompt and picture) is computed once; "
        "null: on a CPU only, for its kernels were not yet run on a GPU",
    )
    attention: Literal["auto", "transformer-engine", "varlen", "flash", "cudnn", "flex", "padded"] = Field(
        default="auto",
        description="the kernel that attends; auto: the first of these that can, without flex, whose compiled form was not yet "
        "run on a GPU. The run's first lines and mmsr1 doctor name it and say why",
    )
    fp8: Training[Literal["none", "current"]] = Field(
        default="none",
        description="current: the decoder layers' matrix products in 8 bits, scaled by each tensor's own largest value; needs "
        "transformer-engine, bfloat16 and a GPU from compute capability 8.9 on",
    )
    offload: OffloadConfig = OffloadConfig()
    logprob_chunk: int = Field(default=2048, gt=0, description="tokens whose logits are turned into log-probs at a time")
    provider: dict[str, Any] = Field(default_factory=dict, description="native fields of the megatron-core model config")

    @property
    def expert_tensor(self) -> int:
        """Over how many ranks each expert is split."""
        if self.expert_tensor_parallel is not None:
            return self.expert_tensor_parallel
        return 1 if self.expert_parallel > 1 else self.tensor_parallel
