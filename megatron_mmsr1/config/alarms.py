"""When a run says that its training goes wrong."""

from __future__ import annotations

from pydantic import Field

from megatron_mmsr1.config.section import Affects, Section


class AlarmsConfig(Section):
    """Thresholds of the alarms (docs/operations.md#alarms); nothing here changes what is trained."""

    AFFECTS = Affects.LOGGING

    steps: int = Field(default=3, gt=0, description="an alarm begins, and is over, after so many such steps in a row")
    window: int = Field(default=20, ge=5, description="steps before, whose median a sudden change is measured against")
    invalid_turns: float = Field(
        default=0.25, ge=0, le=1, description="share of trajectories that end in a turn without an action; 1: never said"
    )
    entropy: float = Field(default=0.01, ge=0, description="nats a token below which the policy is sure of all; 0: never said")
    equal_groups: float = Field(
        default=0.9, ge=0, le=1, description="share of groups whose rollouts all have one reward; 1: never said"
    )
    length: float = Field(default=2.0, gt=1, description="times the median of sampled tokens a trajectory, up or down")
    calls_below: float = Field(default=0.02, ge=0, le=1, description="share of trajectories that call a tool; 0: never said")
    calls_above: float = Field(default=0.98, ge=0, le=1, description="share of trajectories that call a tool; 1: never said")
    spike: float = Field(
        default=8.0, gt=1, description="times the median gradient norm; for the loss, times its median distance from its median"
    )
