"""Training runs whose rollouts can be walked through: found under one directory, never named by a path from outside."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.eval.metrics import kind
from megatron_mmsr1.protocol import Answer, parse_action
from megatron_mmsr1.rollout.dump import read_dump
from megatron_mmsr1.trajectory import Trajectory

ROLLOUTS = "rollouts"
DEEP = 3  # directories below the root that are looked into
RUNS, POINTS = 200, 240
INDEX_BYTES = 256_000_000  # of compressed dumps that are read for an overview; from more, evenly chosen ones
# Of a dump that several leaders wrote, the first file stands for all.
_DUMP = re.compile(
    r"(?P<name>step_(?P<step>\d+)|eval_before|eval_after|eval_(?:step_)?(?P<eval>\d+))(?:\.part0+of\d+)?\.jsonl\.zst"
)
_SHA = re.compile(r"[0-9a-f]{64}")


@dataclass(slots=True, frozen=True)
class Point:
    """One dump of a run. `key` is what read_dump takes."""

    key: int | str
    title: str
    file: Path


@dataclass(slots=True, frozen=True)
class Row:
    """One trajectory of a dump, in short."""

    prompt_id: str
    question: str
    gold: tuple[str, ...]
    kind: str
    answer: str
    searches: tuple[str, ...]
    reward: float | None
    status: str
    place: int  # in the dump


def find(root: str | Path | None) -> dict[str, Path]:
    """Runs under `root` by name, newest first. A name is looked up in here and never made into a path."""
    if root is None or not Path(root).is_dir():
        return {}
    top = Path(root).resolve()
    found: dict[str, Path] = {}
    todo = [(top, 0)]
    while todo:
        directory, depth = todo.pop()
        rollouts = directory / ROLLOUTS
        if rollouts.is_dir() and rollouts.resolve().is_relative_to(top):
            found["." if directory == top else str(directory.relative_to(top))] = directory
        elif depth < DEEP:
            # A link may lead out of the root, or round in circles.
            todo += [(d, depth + 1) for d in directory.iterdir() if d.is_dir() and not d.is_symlink()]
    newest = sorted(found.items(), key=lambda item: item[1].stat().st_mtime, reverse=True)
    return dict(newest[:RUNS])


def points(run: Path) -> list[Point]:
    """A run's dumps in the order of training."""
    found: list[tuple[tuple[int, int], Point]] = []
    for file in (run / ROLLOUTS).iterdir():
        m = _DUMP.fullmatch(file.name)
        if m is None or file.is_symlink():
            continue
        if m["step"] is not None:
            found.append(((int(m["step"]), 1), Point(int(m["step"]), f"step {int(m['step'])}", file)))
        elif m["eval"] is not None:
            found.append(((int(m["eval"]), 2), Point(m["name"], f"evaluation after step {int(m['eval'])}", file)))
        elif m["name"] == "eval_before":
            found.append(((-1, 0), Point(m["name"], "before training", file)))
        else:
            found.append(((10**12, 0), Point(m["name"], "after training", file)))
    return _fewer([p for _, p in sorted(found, key=lambda item: item[0])])


def _fewer(all_: list[Point]) -> list[Point]:
    """Evenly chosen, first and last included, where there are more than a page can show or a reader will wait for."""
    size = sum(p.file.stat().st_size for p in all_)
    n = min(len(all_), POINTS, max(2, int(len(all_) * INDEX_BYTES / max(size, 1))))
    if n >= len(all_):
        return all_
    return [all_[round(i * (len(all_) - 1) / (n - 1))] for i in range(n)]


def rows(p: Point) -> tuple[Row, ...]:
    """A dump in short; none for a damaged one. Kept until the file changes."""
    stat = p.file.stat()
    return _rows(p.file.parent, p.key, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2 * POINTS)
def _rows(directory: Path, key: int | str, _time: int, _size: int) -> tuple[Row, ...]:
    try:
        trajectories, _ = read_dump(directory, key)
    except RunError:  # torn by a kill; the others still tell their story
        return ()
    return tuple(_row(t, n) for n, t in enumerate(trajectories))


def trajectory(p: Point, place: int) -> Trajectory:
    """One trajectory of a dump. RunError for a damaged file, IndexError for no such place."""
    return read_dump(p.file.parent, p.key)[0][place]


def _row(t: Trajectory, place: int) -> Row:
    searches = tuple(c.kind for c in t.tool_calls)
    gold = tuple(t.golden_answers)
    return Row(t.prompt_id, t.question, gold, kind(t), answer(t), searches, t.reward, t.status.value, place)


def answer(t: Trajectory) -> str:
    """What was answered, or how it ended without."""
    texts = t.assistant_texts
    action = parse_action(texts[-1]) if texts else None
    return action.text if isinstance(action, Answer) else f"({t.status.value.replace('_', ' ')})"


def pictures(run: Path, t: Trajectory) -> dict[str, bytes]:
    """A trajectory's PNGs by hash, as far as the run still has them."""
    from megatron_mmsr1.data.store import ImageStore

    store = ImageStore(run / "images")
    found: dict[str, bytes] = {}
    for ref in t.images:
        if _SHA.fullmatch(ref.sha256) and ref.sha256 in store:  # a dump's words are not to be trusted with a path
            found[ref.sha256] = store.get(ref.sha256)
    return found


def follow(index: list[tuple[Point, tuple[Row, ...]]], most: int = 300) -> list[tuple[str, str]]:
    """(label, prompt_id) of prompts worth following: those that were answered at several points, most often first."""
    seen: Counter[str] = Counter()
    question: dict[str, str] = {}
    for _, found in index:
        for prompt in {r.prompt_id for r in found}:
            seen[prompt] += 1
        question |= {r.prompt_id: r.question for r in found}
    return [(f"{question[p]} ({p}, {n} times)", p) for p, n in seen.most_common(most) if n > 1]
