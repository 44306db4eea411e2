"""Evaluation: held-out questions through a policy, summed up by kind, kept as JSON, compared as a table.

A policy is anything that turns prompts into scored trajectories: the trained model behind an engine, or one of Atlas's scripted
baselines. What it is does not show here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_mmsr1.config import ProtocolConfig
from megatron_mmsr1.data import files
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.eval.metrics import by_kind, scored, summary, tool_shares
from megatron_mmsr1.trajectory import Trajectory

if TYPE_CHECKING:
    from rich.table import Table

OVERALL = "overall"
BEFORE, AFTER = "before", "after"  # the evaluations of a run's first and last weights


@dataclass(slots=True)
class Row:
    """One kind of question. Shares and means are in [0, 1]; `failed` were left out for an engine's or a tool's failure."""

    kind: str
    n: int
    accuracy: float
    reward: float
    format: float
    search_share: float  # of responses that call any tool
    search_ratio: float  # calls made / calls allowed
    failed: int = 0
    tools: dict[str, float] = field(default_factory=dict[str, float])  # share of responses that call each tool, by its name


@dataclass(slots=True)
class EvalResult:
    name: str
    rows: list[Row]  # by kind; the last one is the overall
    categories: list[Row] = field(default_factory=list[Row])  # search_free and search_required, where the data say so
    meta: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def overall(self) -> Row:
        return self.rows[-1]

    def row(self, kind: str) -> Row | None:
        """By kind, category or "overall"."""
        return next((r for r in [*self.rows, *self.categories] if r.kind == kind), None)

    @classmethod
    def from_trajectories(
        cls, name: str, trajectories: Sequence[Trajectory], protocol: ProtocolConfig, **meta: Any
    ) -> EvalResult:
        """Raises RunError if no trajectory was scored: an evaluation of nothing must not look like a zero."""
        good = scored(trajectories)
        if not good:
            raise RunError(
                f"evaluation {name!r}: none of {len(trajectories)} trajectories was scored; "
                "the engine or the search server failed, see their logs"
            )
        rows = [_row(k, members, protocol) for k, members in by_kind(trajectories).items() if scored(members)]
        categories = [
            _row(c, [t for t in trajectories if t.category == c], protocol) for c in sorted({t.category for t in good} - {""})
        ]
        return cls(name, [*rows, _row(OVERALL, trajectories, protocol)], categories, dict(meta))

    def save(self, path: Path) -> None:
        files.write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> EvalResult:
        """Raises RunError naming the file if it is not an evaluation."""
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError, KeyError) as e:
            raise RunError(f"{path}: not an evaluation result ({e}): remove it and evaluate again") from e

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> EvalResult:
        return cls(d["name"], [Row(**r) for r in d["rows"]], [Row(**r) for r in d["categories"]], d["meta"])

    def line(self) -> str:
        """The overall and each kind in one line."""
        o = self.overall
        parts = "; ".join(f"{r.kind} {r.accuracy:.0%} right, {r.search_share:.0%} search" for r in self.rows[:-1])
        failed = f", {o.failed} failed in the engine or a tool" if o.failed else ""
        return f"evaluation {self.name}: {o.n} questions{failed}, accuracy {o.accuracy:.1%}, reward {o.reward:.3f} ({parts})"


def _row(kind: str, members: Sequence[Trajectory], protocol: ProtocolConfig) -> Row:
    """Sums up at least one scored trajectory."""
    ok = scored(members)
    s = summary(ok, protocol)
    n = int(s.pop("n"))
    return Row(kind, n, **s, failed=len(members) - len(ok), tools=tool_shares(ok))


def save_all(results: Sequence[EvalResult], path: Path) -> None:
    """Several results in one file (the scripted policies)."""
    files.write_text(path, json.dumps({"results": [asdict(r) for r in results]}, indent=1) + "\n")


def load_all(directory: Path) -> list[EvalResult]:
    """What RUN/eval holds, in the order of a story: before, during (step_*), after, then the scripted policies."""
    files = sorted(directory.glob("*.json"), key=lambda p: (_place(p.stem), p.stem))
    out: list[EvalResult] = []
    for path in files:
        if path.stem == "policies":
            try:
                out += [EvalResult.from_dict(d) for d in json.loads(path.read_text())["results"]]
            except (ValueError, TypeError, KeyError) as e:
                raise RunError(f"{path}: not a list of evaluation results ({e}): remove it and evaluate again") from e
        else:
            out.append(EvalResult.load(path))
    return out


def of_model(results: Sequence[EvalResult], step: int, weights: str = "") -> tuple[list[EvalResult], list[str]]:
    """(the results that may stand beside a model after `step` steps, why each of the others may not).

    "after" is of the run's last weights by its name: it is refused for a model of another step, or, where both are named by
    content (`weights`), of other weights. Earlier results stand for themselves.
    """
    kept: list[EvalResult] = []
    refused: list[str] = []
    for r in results:
        at, named = r.meta.get("weights"), r.meta.get("key", {}).get("weights", "")
        if r.name == AFTER and isinstance(at, int) and at != step:
            refused.append(f"evaluation {r.name} is of step {at}, the model of step {step}: evaluate again")
        elif r.name == AFTER and weights and named and named != weights:
            refused.append(f"evaluation {r.name} is of weights {named}, the model has {weights}: evaluate again")
        else:
            kept.append(r)
    return kept, refused


def searched(run: Path, results: Sequence[EvalResult]) -> dict[str, Any]:
    """The one snapshot that the pages of a run name: what its newest evaluation searched, else what its newest rollouts did.

    {"mode", "id", "backends"}, {} where nobody said. A store grows while it is live or recorded, so an id names what it held at
    that moment: a checkpoint, a dump and an evaluation each keep their own. Scripted policies and evaluations of other models
    have a server of their own and say nothing of the run.
    """
    from megatron_mmsr1.rollout.dump import read_meta

    own = [r.meta for r in reversed(results) if _place(r.name) <= 2]
    steps = [read_meta(p) for p in sorted((run / "rollouts").glob("step_*"))[-1:]]
    others = [r.meta for r in reversed(results)]  # of a directory that holds nothing else
    return next((m["search"] for m in (*own, *steps, *others) if m.get("search")), dict[str, Any]())


def _place(stem: str) -> int:
    return {BEFORE: 0, AFTER: 2, "policies": 4}.get(stem, 1 if stem.startswith("step_") else 3)


# ----------------------------------------------------------------------------------------------------------------- tables
@dataclass(slots=True, frozen=True)
class Measure:
    """One line of the comparison: a text for each result, "" where it has none."""

    section: str
    title: str
    cells: list[str]


SECTIONS = ("all questions", "by kind: % right / % that search", "by category: % right / % that search")


def compare(results: Sequence[EvalResult]) -> list[Measure]:
    """The comparison that terminal, markdown and report all show: measures down, results across."""
    whole, kind, category = SECTIONS
    overall = [r.overall for r in results]
    out = [
        Measure(whole, "accuracy", [f"{o.accuracy:.1%}" for o in overall]),
        Measure(whole, "reward", [f"{o.reward:.3f}" for o in overall]),
        Measure(whole, "format", [f"{o.format:.1%}" for o in overall]),
        Measure(whole, "searching", [f"{o.search_share:.1%}" for o in overall]),
        Measure(whole, "calls / allowed", [f"{o.search_ratio:.1%}" for o in overall]),
        Measure(whole, "questions", [f"{o.n} + {o.failed} failed" if o.failed else str(o.n) for o in overall]),
    ]
    kinds = dict.fromkeys(row.kind for r in results for row in r.rows[:-1])
    if list(kinds) != ["all"]:
        out += [Measure(kind, k, [_both(r.row(k)) for r in results]) for k in kinds]
    categories = dict.fromkeys(row.kind for r in results for row in r.categories)
    if categories != kinds:
        out += [Measure(category, c.replace("_", "-"), [_both(r.row(c)) for r in results]) for c in categories]
    return out


def _both(row: Row | None) -> str:
    return f"{100 * row.accuracy:.0f} / {100 * row.search_share:.0f}" if row else ""


def table(results: Sequence[EvalResult]) -> Table:
    """For a terminal, six results in 80 columns: `rich.print(table(results))`."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    caption = "by kind and by category: % right/% of responses that search"
    out = Table(title="Held-out questions", title_justify="left", caption=caption, caption_justify="left", box=SIMPLE_HEAD)
    out.add_column("", no_wrap=True)
    for r in results:
        out.add_column(r.name, justify="right")
    section = SECTIONS[0]
    for m in compare(results):
        if m.section != section:
            section = m.section
            out.add_row()
        out.add_row(m.title, *(c.replace(" / ", "/") for c in m.cells))
    return out
