"""What every section of a config is: it forbids unknown keys, checks what is assigned to it later, and says of each key what
a change of it affects.

    class RolloutConfig(Section):
        AFFECTS = Affects.ROLLOUT                          # every key of the section that says nothing else
        temperature: float = 1.0
        concurrency: Machine[int] = 1024                   # this one only affects how fast it runs

From this classification a resume knows what may change (`config.affects.differing`), a step's dump whether it may be used again
(`config.affects.fingerprint`), and serving what belongs to the model. A part's own Settings are classified by the field that
holds them; they need not say anything.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict


class Affects(StrEnum):
    """What a change of a setting changes."""

    ROLLOUT = "rollout"  # what is sampled, observed or scored
    TRAINING = "training"  # which weights come of the same rollouts
    MACHINE = "machine"  # where, how fast and how long it runs
    LOGGING = "logging"  # what is written down or warned about


T = TypeVar("T")
Rollout = Annotated[T, Affects.ROLLOUT]
Training = Annotated[T, Affects.TRAINING]
Machine = Annotated[T, Affects.MACHINE]
Logging = Annotated[T, Affects.LOGGING]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    AFFECTS: ClassVar[Affects | None] = None  # None: as the field that holds the section
