"""How a run's answers changed, as HTML: an overview of all points, then one of them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from demo import runs
from demo.escape import esc
from demo.runs import Point, Row

Index = list[tuple[Point, tuple[Row, ...]]]
PROMPTS = 12  # shown of a point, unless one is followed


def index_of(root: str | Path | None, name: str | None) -> Index:
    """The points of a run below `root` with their rollouts in short; empty for a name that is none of a run."""
    directory = runs.find(root).get(name or "")
    if directory is None:
        return []
    found = [(p, runs.rows(p)) for p in runs.points(directory)]
    return [(p, r) for p, r in found if r]


def reward(rows: Sequence[Row]) -> float | None:
    values = [r.reward for r in rows if r.reward is not None]
    return statistics.fmean(values) if values else None


def searching(rows: Sequence[Row]) -> float | None:
    return statistics.fmean(bool(r.searches) for r in rows) if rows else None


def calls(rows: Sequence[Row]) -> float | None:
    return statistics.fmean(len(r.searches) for r in rows) if rows else None


def of(index: Index, prompt: str) -> Index:
    """What is followed: one prompt at the points that have it, or everything."""
    kept = [(p, tuple(r for r in found if not prompt or r.prompt_id == prompt)) for p, found in index]
    return [(p, found) for p, found in kept if found]


def short(r: Row) -> str:
    """A rollout in one line."""
    return f"{r.answer} · {r.question} · reward {_f(r.reward)}"


def overview(index: Index, at: int) -> str:
    """Reward and search over all points, as two rows of bars and as a table."""
    if not index:
        return '<p class="empty">This run has no rollouts to show.</p>'
    bars = _bars("Mean reward", [reward(r) for _, r in index], at, index) + _bars(
        "Responses that search", [searching(r) for _, r in index], at, index
    )
    rows = "".join(
        f'<tr{" class=here" if n == at else ""}><th scope="row">{esc(p.title)}</th><td>{len(r)}</td><td>{_f(reward(r))}</td>'
        f"<td>{_f(searching(r), '{:.0%}')}</td><td>{_f(calls(r))}</td><td>{_top(r)}</td></tr>"
        for n, (p, r) in enumerate(index)
    )
    head = "".join(
        f'<th scope="col">{h}</th>'
        for h in ("point", "rollouts", "mean reward", "searching", "searches each", "commonest answer")
    )
    return (
        f'<div class="charts">{bars}</div><details class="table" id="points"><summary>All points as a table</summary>'
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )


def point(p: Point, rows: Sequence[Row], *, prompt: str) -> str:
    """The prompts of one point with their rollouts."""
    groups: dict[str, list[Row]] = {}
    for r in rows:
        groups.setdefault(r.prompt_id, []).append(r)
    shown = list(groups.values())[:PROMPTS]
    more = len(groups) - len(shown)
    rest = f'<p class="note">and {more} more questions at this point.</p>' if more else ""
    facts = f"{len(rows)} rollouts, mean reward {_f(reward(rows))}, {_f(searching(rows), '{:.0%}')} search"
    cards = "".join(_prompt(g, bool(prompt)) for g in shown)
    return f'<h2>{esc(p.title)}</h2><p class="note">{facts}</p><div class="questions">{cards}</div>{rest}'


def _prompt(rows: list[Row], alone: bool) -> str:
    first = rows[0]
    answers = Counter(r.answer for r in rows)
    gold = {g.strip().lower() for g in first.gold}
    chips = "".join(
        f'<li class="{"right" if a.strip().lower() in gold else "wrong"}">{_chip(a, n, a.strip().lower() in gold)}</li>'
        for a, n in answers.most_common(None if alone else 6)
    )
    facts = [
        first.kind,
        f"right: {', '.join(first.gold)}",
        f"reward {_f(reward(rows))}",
        f"{_f(searching(rows), '{:.0%}')} search",
    ]
    return (
        f'<div class="question"><h3>{esc(first.question)}</h3><p class="meta">{esc(" · ".join(facts))}</p>'
        f'<ul class="answers">{chips}</ul></div>'
    )


def _chip(answer: str, n: int, right: bool) -> str:
    """Right ones have a tick: colour alone would not tell everybody."""
    return f"{'✓ ' if right else ''}{esc(answer)}{f' ×{n}' if n > 1 else ''}"


def _bars(title: str, values: list[float | None], at: int, index: Index) -> str:
    known = [v for v in values if v is not None]
    first, last = (known[0], known[-1]) if known else (0.0, 0.0)
    columns = "".join(
        f'<span class="bar{" here" if n == at else ""}" style="height:{_height(v)}%" title="{esc(p.title)}: {_f(v)}"></span>'
        for n, (v, (p, _)) in enumerate(zip(values, index, strict=True))
    )
    here = values[at] if at < len(values) else None
    return (
        f'<div class="chart"><h3>{title}</h3><p class="meta">{_f(first)} at first, {_f(last)} at last; here {_f(here)}</p>'
        f'<div class="bars">{columns}</div></div>'
    )


def _height(v: float | None) -> int:
    return 0 if v is None else round(100 * min(1.0, max(0.02, v)))


def _top(rows: Sequence[Row]) -> str:
    if len({r.prompt_id for r in rows}) != 1:
        return "–"
    a, n = Counter(r.answer for r in rows).most_common(1)[0]
    return f"{esc(a)} ({n} of {len(rows)})"


def _f(v: float | None, how: str = "{:.2f}") -> str:
    return "–" if v is None else how.format(v)
