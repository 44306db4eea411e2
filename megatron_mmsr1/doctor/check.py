"""What a check is, what it gets to see, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.doctor.tasks import Tasks


class Level(StrEnum):
    """An error: something that was looked at will not work. A warning: it works, and may disappoint."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `value` is for a person, `data` the same for a program (JSON-ready); `advice` is one line,
    and stands wherever the level is not OK. `alike`: a value that must be the same on every node."""

    what: str
    value: str
    level: Level = Level.OK
    advice: str = ""
    alike: bool = False
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Finding:
        """From `dataclasses.asdict`, which may have travelled as JSON with other keys beside its own."""
        own: dict[str, Any] = {f.name: row[f.name] for f in fields(cls)}
        own["level"] = Level(row["level"])
        return cls(**own)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a check runs. `cfg`: of the run; None: only the machine is looked at. `asked`: the person named this check, which
    may then take minutes."""

    tasks: Tasks
    cfg: RunConfig | None = None
    asked: bool = False

    @property
    def directory(self) -> Path:
        """The run's `output`, or as much of its path as is there; without a run the current directory."""
        wanted = Path(self.cfg.output if self.cfg else ".").absolute()
        return next(p for p in (wanted, *wanted.parents) if p.is_dir())


class Who(StrEnum):
    """Which tasks of a job run a check: the first alone, the first of each node, or all. They may wait for each other."""

    FIRST = "first"
    NODES = "nodes"
    TASKS = "tasks"


@dataclass(frozen=True, slots=True)
class Check:
    """`run` gives no findings where there is nothing to look at. What it raises is an error finding of its own."""

    about: str
    who: Who
    run: Callable[[Place], list[Finding]]
