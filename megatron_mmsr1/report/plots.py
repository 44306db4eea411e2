"""A run's curves as inline SVG that reads on a light page and on a dark one."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_mmsr1.eval.metrics import ORDER

INK = "#010203"  # a colour that nothing else has: every text and axis, replaced by the page's own
COLOURS = ("#3f7fbf", "#d08327", "#3f9a68", "#c25450", "#8a6fc0", "#7f8a94")
WINDOW = 5  # steps that a smoothed curve averages


@dataclass(slots=True, frozen=True)
class Plot:
    title: str
    svg: str


@dataclass(slots=True, frozen=True)
class Curve:
    label: str
    metric: str


def plots(rows: Sequence[dict[str, Any]]) -> list[Plot]:
    """The curves that these metrics allow; an empty list for fewer than two steps."""
    if len(rows) < 2:
        return []
    names = {name for row in rows for name in row}
    kinds = "kind" if any(n.startswith("kind/") for n in names) else "category"
    rewards = [Curve("reward", "reward/mean"), Curve("accuracy", "reward/acc"), Curve("format", "reward/format")]
    searches = [*_split(names, kinds, "search_share"), Curve("all", "search/share")]
    wanted = [
        (
            "Reward and accuracy",
            rewards,
            True,
        ),
        ("Share of responses that search", searches, True),
        ("Accuracy by kind of question", _split(names, kinds, "acc"), True),
        ("Loss", [Curve("loss", "loss")], False),
        ("Trainer and engine: mean |difference| of log-probs", [Curve("difference", "logprob_diff_mean")], False),
        ("Entropy", [Curve("entropy", "entropy")], False),
        ("Tokens a second", [Curve("tokens/s", "tokens_per_s")], False),
        ("Seconds a step", _stages(names), False),
    ]
    out = []
    for title, curves, share in wanted:
        present = [c for c in curves if c.metric in names]
        if present:
            out.append(Plot(title, _draw(rows, present, share, title)))
    return out


def _split(names: Iterable[str], prefix: str, measure: str) -> list[Curve]:
    found = {n.split("/")[1] for n in names if re.fullmatch(f"{prefix}/[^/]+/{measure}", n)}
    order = sorted(found, key=lambda k: (ORDER.index(k) if k in ORDER else len(ORDER), k))
    return [Curve(k, f"{prefix}/{k}/{measure}") for k in order]


def _stages(names: Iterable[str]) -> list[Curve]:
    return [Curve(n.removeprefix("seconds/"), n) for n in sorted(names) if n.startswith("seconds/")]


def _series(rows: Sequence[dict[str, Any]], metric: str) -> tuple[list[int], list[float]]:
    points = [(row["step"], float(row[metric])) for row in rows if row.get(metric) is not None]
    return [p[0] for p in points], [p[1] for p in points]


def smoothed(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """The mean of each value and those around it, `window` at most; the ends average fewer."""
    half = window // 2
    parts = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [math.fsum(p) / len(p) for p in parts]


def _draw(rows: Sequence[dict[str, Any]], curves: Sequence[Curve], share: bool, title: str) -> str:
    from matplotlib import rc, rc_context
    from matplotlib.figure import Figure

    with rc_context():
        rc("svg", fonttype="none", hashsalt=title)  # ids differ between figures, not between two reports of a run
        rc("font", family="sans-serif", size=9)
        rc("axes", edgecolor=INK, labelcolor=INK, titlecolor=INK)
        rc("axes.spines", top=False, right=False)
        for group in ("text", "xtick", "ytick"):
            rc(group, color=INK)
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        axes = figure.subplots()
        for i, curve in enumerate(curves):
            steps, values = _series(rows, curve.metric)
            colour = COLOURS[i % len(COLOURS)]
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
            axes.plot(steps, smoothed(values), color=colour, linewidth=1.8, label=curve.label)
        axes.set_xlabel("step")
        if share:
            axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.15, color=INK)
        if len(curves) > 1:
            figure.legend(loc="outside lower center", ncols=min(len(curves), 4), frameon=False)
        out = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # The style sheet that matplotlib puts in would hold for the whole page; its two rules go on the figure itself.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    return svg.replace("<svg ", '<svg class="plot" role="img" stroke-linejoin="round" stroke-linecap="butt" ', 1)
