"""What a part of the check is told, and how it tells what it found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Kind = Literal["facts", "refused", "row", "skipped", "fault", "end"]
Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Job:
    """`deadline`: of `time.monotonic`, the same clock in every process of a machine; after it the part is ended from outside.

    What is told through `row` is kept also then. `skipped` names something that was left out and why, `fault` something that is
    not as it must be; a part with a fault has failed, but goes on.
    """

    device: Device
    tiny: bool
    deadline: float
    tell: Callable[[Kind, Any], None]

    def row(self, **values: Any) -> None:
        self.tell("row", values)

    def skipped(self, what: str) -> None:
        self.tell("skipped", what)

    def fault(self, what: str) -> None:
        self.tell("fault", what)

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


class Part(Protocol):
    """A file of this directory that measures one thing."""

    def run(self, job: Job) -> None: ...
