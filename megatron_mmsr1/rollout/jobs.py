"""What a leader and its rollout worker say to each other through their pipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from megatron_mmsr1.data.dataset import Prompt

FIRST_S = 5.0


@dataclass(slots=True, frozen=True)
class Job:
    prompts: list[Prompt]
    step: int
    indices: list[int]
    weight_version: int | None
    group_size: int
    temperature: float | None
    copies: list[int] | None = None  # how often each row came before in the whole step; None: count within this job


@dataclass(slots=True, frozen=True)
class Progress:
    """How far a batch is. `tokens`: sampled so far."""

    done: int
    total: int
    seconds: float
    tokens: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    paused: bool = False  # the tools are down, and calls wait (rollout/throttle.py)
    paused_s: float = 0.0  # seconds of pauses since the worker began
    failing: float = 0.0  # share of the latest tool calls that failed

    def line(self) -> str:
        if not self.done and not self.paused:
            return f"rollout 0/{self.total}: none has ended in {self.seconds:.0f} s; waiting for the engine's first answers"
        rate = self.done / self.seconds if self.seconds else 0.0
        ended = ", ".join(f"{n} {name}" for name, n in sorted(self.statuses.items(), key=lambda x: -x[1]))
        ended += " (paused: search is down)" if self.paused else ""
        return f"rollout {self.done}/{self.total}, {rate:.1f}/s, {self.tokens} tokens" + (f" ({ended})" if ended else "")


def now_and_then(say: Callable[[str], None], every_s: float = 30.0) -> Callable[[Progress], None]:
    """What to give to a batch as its `progress`: it tells `say` a line every `every_s` seconds, and a first one after FIRST_S
    where nothing has ended by then."""
    said_s, quiet = 0.0, True

    def heard(p: Progress) -> None:
        nonlocal said_s, quiet
        if p.seconds < said_s:  # a new batch begins at 0
            said_s, quiet = 0.0, True
        if p.done < p.total and p.seconds - said_s >= (FIRST_S if quiet and not p.done else every_s):
            said_s, quiet = p.seconds, False
            say(p.line())

    return heard


@dataclass(slots=True, frozen=True)
class Ready:
    pass


@dataclass(slots=True, frozen=True)
class Failed:
    message: str
    usage: bool = False  # the person's input was wrong
