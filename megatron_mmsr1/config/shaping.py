"""The section `shaping`: which of its rollouts a step trains on, and what is changed in their rewards before the advantage."""

from __future__ import annotations

from pydantic import Field

from megatron_mmsr1.config.section import Affects, Section


class OverlongConfig(Section):
    """Long responses. The rewards of dumps and metrics stay as they were scored."""

    AFFECTS = Affects.TRAINING

    buffer: int = Field(
        default=0, ge=0, description="sampled tokens before a conversation's limit over which the penalty grows; 0: no penalty"
    )
    penalty: float = Field(default=1.0, ge=0, description="what the reward loses at the limit")
    filter: bool = Field(
        default=False, description="no token of a response that ran out of tokens is trained on; its group's baseline has it"
    )


class ShapingConfig(Section):
    overlong: OverlongConfig = OverlongConfig()
