"""The section `shaping`: which of its rollouts a step trains on, and what is changed in their rewards before the advantage."""

from __future__ import annotations

from pydantic import Field

from megatron_mmsr1.config.section import Affects, Section


class RefillConfig(Section):
    """Dynamic sampling: a step trains on groups with variance alone, `data.prompts_per_step` of them."""

    AFFECTS = Affects.ROLLOUT

    rounds: int = Field(
        default=0,
        ge=0,
        description="further rounds of rollouts in a step while groups with variance are missing; what is sampled beyond them "
        "is kept for the next step. 0: off",
    )


class CurriculumConfig(Section):
    """Easy questions first."""

    AFFECTS = Affects.ROLLOUT

    column: str | None = Field(
        default=None, description="numeric column of data.train: the higher, the harder. mmsr1 data difficulty makes one"
    )
    start: float = Field(default=0.2, gt=0, le=1, description="the easiest share of the rows, which step 0 draws from")
    steps: int = Field(default=0, ge=0, description="steps until all rows are drawn from; 0: no curriculum")


class ReplayConfig(Section):
    """Rare successes are kept, and join later groups of their question that have none."""

    AFFECTS = Affects.TRAINING

    threshold: float = Field(
        default=0.0, ge=0, lt=1, description="of a group with at most this share of successes the best one is kept; 0: off"
    )
    max_age: int = Field(
        default=0, ge=0, description="steps for which it is kept; an epoch's at least, as rows come once in it"
    )

    @property
    def on(self) -> bool:
        return self.threshold > 0 and self.max_age > 0


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
    refill: RefillConfig = RefillConfig()
    overlong: OverlongConfig = OverlongConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    replay: ReplayConfig = ReplayConfig()

    @property
    def off_policy(self) -> bool:
        """Whether a step may train on what older weights sampled."""
        return bool(self.refill.rounds) or self.replay.on
