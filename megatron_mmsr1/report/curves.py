"""A run's numbers as curves: which there are, and the values of each over steps, sampled tokens and hours."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from megatron_mmsr1.eval.metrics import wilson
from megatron_mmsr1.eval.results import AFTER, BEFORE, EvalResult
from megatron_mmsr1.report.plots import Curve, heldout_kinds, wanted
from megatron_mmsr1.report.text import visible

Row = dict[str, Any]
AXES = ("step", "tokens", "hours")
DIGITS = 5  # of a value on the page


@dataclass(slots=True)
class Line:
    """One curve's worth of runs: one run, or several that differ in their seed only. Rows are a run's metrics."""

    label: str
    runs: list[list[Row]]
    results: list[list[EvalResult]] = field(default_factory=list[list[EvalResult]])


def page_data(lines: Sequence[Line]) -> dict[str, Any]:
    """What the page draws, JSON-ready: {"lines": [label], "axes": [...], "plots": [...], "alarms": [...]}.

    A plot has "title", "share" (is its axis 0 to 1), "rare" (is it folded away) and "curves". A curve has "label", "line"
    (which of the lines), "x" (which of the axes: a list for each of `AXES`), "y", and for several runs "lo" and "hi": the
    mean less and plus the standard deviation over them. Steps without a value are left out, as are those that not all runs
    have. Held-out points ("points": true) have the 95 % interval of their accuracy there; "level": true is the oracle's.
    """
    rows = {i: [_with_axes(r) for r in line.runs] for i, line in enumerate(lines)}
    names = {n for runs in rows.values() for r in runs for row in r for n in row}
    plots: list[dict[str, Any]] = []
    if accuracy := [c for i, line in enumerate(lines) for c in _heldout(i, line, rows[i])]:
        plots.append({"title": "Held-out accuracy, with its 95 % interval", "share": True, "rare": False, "curves": accuracy})
    for plot in wanted(names):
        curves = [c for curve in plot.curves for i in rows if (c := _curve(i, curve, rows[i]))]
        if any(len(c["y"]) > 1 for c in curves):
            plots.append({"title": plot.title, "share": plot.share, "rare": plot.rare, "curves": curves})
    alarms = [{"line": i, **span} for i, runs in rows.items() if len(runs) == 1 for span in spans(runs[0])]
    return {"lines": [line.label for line in lines], "axes": _shared(plots), "plots": plots, "alarms": alarms}


def _shared(plots: Sequence[dict[str, Any]]) -> list[dict[str, list[float]]]:
    """The different "x" of all curves; each curve's becomes its place in them. Most curves have a point at every step."""
    places = dict[tuple[tuple[float, ...], ...], int]()
    found: list[dict[str, list[float]]] = []
    for curve in (c for plot in plots for c in plot["curves"]):
        key = tuple(tuple(values) for values in curve["x"].values())
        if key not in places:
            places[key] = len(found)
            found.append(curve["x"])
        curve["x"] = places[key]
    return found


def spans(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """{"name", "from", "to", "stands"} of each time that an alarm stood, in steps, the last one included."""
    out: list[dict[str, Any]] = []
    for metric in sorted({n for row in rows for n in row if n.startswith("alarm/")}):
        open_: dict[str, Any] | None = None
        for row in rows:
            if not row.get(metric):
                open_ = None
            elif open_ is None:
                open_ = {"name": metric.removeprefix("alarm/"), "from": row["step"], "to": row["step"], "stands": False}
                out.append(open_)
            else:
                open_["to"] = row["step"]
        if open_ is not None:
            open_["stands"] = True
    return sorted(out, key=lambda s: (s["from"], s["name"]))


def _with_axes(rows: Sequence[Row]) -> list[Row]:
    """The rows with "x/tokens", sampled so far, and "x/hours" since the first one was written; both end with the step."""
    sampled = accumulate(
        (r.get("tokens/sampled") or 0.0) * (r.get("trajectories") or 0) if "tokens/sampled" in r else r.get("tokens") or 0.0
        for r in rows
    )
    start = next((r["time"] for r in rows if "time" in r), 0.0)
    return [
        {**r, "x/step": r["step"], "x/tokens": _short(t), "x/hours": _short(max(0.0, r.get("time", start) - start) / 3600)}
        for r, t in zip(rows, sampled, strict=True)
    ]


def _curve(line: int, curve: Curve, runs: Sequence[Sequence[Row]]) -> dict[str, Any] | None:
    found = [{row["step"]: (row, v) for row in rows if (v := curve.of(row)) is not None and math.isfinite(v)} for rows in runs]
    steps = [s for s in found[0] if all(s in f for f in found)]  # that all of them have
    if not steps:
        return None
    out: dict[str, Any] = {"label": visible(curve.label), "line": line}
    if len(runs) == 1:
        out["y"] = [_short(found[0][s][1]) for s in steps]
        return out | {"x": {axis: [found[0][s][0][f"x/{axis}"] for s in steps] for axis in AXES}}
    means = [statistics.fmean(f[s][1] for f in found) for s in steps]
    spread = [statistics.pstdev(f[s][1] for f in found) for s in steps]
    out |= {"y": [_short(m) for m in means], "x": {"step": steps}}
    out["lo"] = [_short(m - s) for m, s in zip(means, spread, strict=True)]
    out["hi"] = [_short(m + s) for m, s in zip(means, spread, strict=True)]
    for axis in AXES[1:]:
        out["x"][axis] = [_short(statistics.fmean(f[s][0][f"x/{axis}"] for f in found)) for s in steps]
    return out


def _heldout(line: int, it: Line, runs: Sequence[Sequence[Row]]) -> list[dict[str, Any]]:
    """The evaluations of each run of the line as points at their step, the oracle's accuracy as a level."""
    out: list[dict[str, Any]] = []
    for results, rows in zip(it.results, runs, strict=bool(it.results)):
        own = [(step, r) for r in results if (step := _step_of(r)) is not None]
        if not own:
            continue
        places = [_place(step, rows) for step, _ in own]
        label = f"{own[0][1].overall.n} questions"
        for kind in ("", *heldout_kinds([r for _, r in own])):
            found = [(p, row) for p, (_, r) in zip(places, own, strict=True) if (row := r.row(kind or "overall"))]
            bounds = [wilson(row.accuracy, row.n) for _, row in found]
            curve: dict[str, Any] = {
                "label": visible(kind) or label,
                "line": line,
                "points": True,
                "y": [_short(r.accuracy) for _, r in found],
            }
            curve["x"] = {axis: [p[axis] for p, _ in found] for axis in AXES}
            if not kind:
                curve |= {"lo": [_short(low) for low, _ in bounds], "hi": [_short(high) for _, high in bounds]}
            out.append(curve)
        oracle = next((r for r in results if r.name == "oracle"), None)
        if oracle:
            x = {axis: [0, places[-1][axis]] for axis in AXES}
            out.append({"label": "oracle", "line": line, "level": True, "x": x, "y": [_short(oracle.overall.accuracy)] * 2})
    return out


def _step_of(result: EvalResult) -> int | None:
    """After how many steps its weights were; None for one of no model of the run."""
    at = result.meta.get("weights")
    if result.name == BEFORE:
        return 0
    return at if isinstance(at, int) and (result.name == AFTER or result.name.startswith("step_")) else None


def _place(step: int, rows: Sequence[Row]) -> dict[str, float]:
    before = [r for r in rows if r["step"] < step]
    last = before[-1] if before else {}
    return {"step": step, "tokens": last.get("x/tokens", 0.0), "hours": last.get("x/hours", 0.0)}


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
