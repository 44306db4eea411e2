"""The same question through a run's life, and the best and worst groups of its last steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_mmsr1.report.text import in_short, visible
from megatron_mmsr1.rollout.dump import dump_files, read_dump
from megatron_mmsr1.trajectory import Trajectory, by_group

LIVES, GROUPS, ROLLOUTS = 8, 3, 8  # questions followed; groups of each sort; rollouts of a group that are shown
LAST_STEPS = 3
DUMPS = 6  # of training that are looked through for questions that came again


@dataclass(slots=True)
class Life:
    question: str
    golden: list[str]
    answers: list[tuple[str, str, bool]] = field(default_factory=list[tuple[str, str, bool]])  # when, what, was it right


@dataclass(slots=True)
class Group:
    step: int
    question: str
    golden: list[str]
    mean: float  # reward
    rollouts: list[tuple[str, bool]]  # what, was it right
    more: int = 0  # rollouts that are not shown


def steps_with_rollouts(rollouts: Path) -> list[int]:
    """The steps whose dump is whole, in order: of one that several leaders write some files may not be there yet."""
    numbers = {int(p.name[5:].split(".")[0]) for p in rollouts.glob("step_*")}
    return [n for n in sorted(numbers) if dump_files(rollouts, n)]


def is_right(t: Trajectory) -> bool:
    return t.reward_parts.get("acc", 0.0) > 0


def lives(rollouts: Path) -> list[Life]:
    """The first, a middle and the last answer to questions that were asked more than once: held-out ones, if there were two
    evaluations, else questions of training. Those whose answer changed between right and wrong lead."""
    asked: dict[str, list[tuple[str, Trajectory]]] = {}
    for when, key in _points(rollouts):
        for t in {t.prompt_id: t for t in reversed(read_dump(rollouts, key)[0])}.values():
            asked.setdefault(t.prompt_id, []).append((when, t))
    several = [_three(a) for a in asked.values() if len(a) > 1]
    several.sort(key=lambda a: len({is_right(t) for _, t in a}), reverse=True)
    out: list[Life] = []
    for answers in several[:LIVES]:
        last = answers[-1][1]
        told = [(when, in_short(t), is_right(t)) for when, t in answers]
        out.append(Life(visible(last.question), [visible(g) for g in last.golden_answers], told))
    return out


def _points(rollouts: Path) -> list[tuple[str, str | int]]:
    during = sorted(p.name.split(".")[0] for p in rollouts.glob("eval_step_*"))
    named = ("eval_before", *during, "eval_after")
    held = [k for k in dict.fromkeys(named) if dump_files(rollouts, k)]
    if len(held) > 1:
        held = _three(held)
        return [(k.removeprefix("eval_").replace("_", " "), k) for k in held]
    steps = steps_with_rollouts(rollouts)
    chosen = steps if len(steps) <= DUMPS else [steps[i * (len(steps) - 1) // (DUMPS - 1)] for i in range(DUMPS)]
    return [(f"step {n}", n) for n in chosen]


def _three[T](items: list[T]) -> list[T]:
    """The first, the middle and the last."""
    return items if len(items) < 3 else [items[0], items[len(items) // 2], items[-1]]


def groups(rollouts: Path) -> tuple[list[Group], list[Group]]:
    """(the worst, the best) by mean reward, of the last steps; no group is in both."""
    found: list[Group] = []
    for step in steps_with_rollouts(rollouts)[-LAST_STEPS:]:
        members = by_group(t for t in read_dump(rollouts, step)[0] if t.reward is not None)
        found += [_group(step, ts) for ts in members.values()]
    found.sort(key=lambda g: g.mean)
    n = min(GROUPS, len(found) // 2)
    return found[:n], found[len(found) - n :][::-1]


def _group(step: int, members: Sequence[Trajectory]) -> Group:
    first = members[0]
    mean = sum(t.reward or 0.0 for t in members) / len(members)
    shown = [(in_short(t), is_right(t)) for t in members[:ROLLOUTS]]
    golden = [visible(g) for g in first.golden_answers]
    return Group(step, visible(first.question), golden, mean, shown, len(members) - len(shown))
