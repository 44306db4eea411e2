"""The report's page from its parts."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from megatron_mmsr1 import __version__, config
from megatron_mmsr1.config.affects import RESULTS, differing, leaves
from megatron_mmsr1.eval.results import EvalResult, Measure, compare
from megatron_mmsr1.report.examples import Example
from megatron_mmsr1.report.facts import environment, facts
from megatron_mmsr1.report.gather import RunData

SCRIPTS = ("curves.js", "page.js")
LIVE = "live.js"
_SELF, _NOBODY = "'self'", "'none'"


def policy(script: str, *, live: bool) -> str:
    """The page's Content-Security-Policy: this one script, pictures inside the page, and a live page's own server."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        f"connect-src {_SELF if live else _NOBODY}; base-uri 'none'; form-action 'none'"
    )


def script(*, live: bool) -> str:
    """All of the page's script."""
    here = resources.files("megatron_mmsr1.report")
    return "\n".join((here / name).read_text(encoding="utf-8") for name in (*SCRIPTS, *([LIVE] if live else [])))


def render(runs: Sequence[RunData], data: dict[str, Any], examples: Sequence[Example], *, live: bool = False) -> str:
    """The whole page. Everything is escaped but our own style, script and the numbers, whose JSON holds no `<`."""
    env = Environment(
        loader=PackageLoader("megatron_mmsr1.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    results = [replace(r, name=f"{d.label}: {r.name}" if len(runs) > 1 else r.name) for d in runs for r in shown(d, len(runs))]
    own = script(live=live)
    return env.get_template("template.html").render(
        title=" and ".join(d.cfg.name if len(runs) == 1 else d.label for d in runs),
        runs=[(d, config.dump(d.cfg), facts(d), environment(d)) for d in runs],
        several=len(runs) > 1,
        version=__version__,
        made=time.strftime("%Y-%m-%d %H:%M"),
        headlines=[(d.label, headline(d.results)) for d in runs],
        differences=differences(runs),
        results=results,
        sections=_sections(compare(results)) if results else [],
        data=Markup(json.dumps(data).replace("<", "\\u003c")),
        alarms=[(data["lines"][a["line"]], a) for a in data["alarms"]],
        looked=any("alarms" in row for d in runs for row in d.metrics),
        examples=examples,
        live=live,
        policy=policy(own, live=live),
        style=Markup((resources.files("megatron_mmsr1.report") / "style.css").read_text(encoding="utf-8")),
        script=Markup(own),
    )


def shown(data: RunData, runs: int) -> list[EvalResult]:
    """Of several runs only what they began and ended with: a column each must fit."""
    return [r for r in data.results if runs == 1 or r.name in ("before", "after")]


def differences(runs: Sequence[RunData]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each run) of every setting that decides results and is not the same in all."""
    keys = sorted({k for d in runs[1:] for k in differing(runs[0].cfg, d.cfg, RESULTS)})
    values = [{k: v for k, v, _ in leaves(d.cfg)} for d in runs]
    return [(k, [json.dumps(v[k]) if k in v else "" for v in values]) for k in keys]


def headline(results: Sequence[EvalResult]) -> list[str]:
    """What training changed, in sentences; empty without a before and an after."""
    found = {r.name: r for r in results}
    if "before" not in found or "after" not in found:
        return []
    b, a = found["before"], found["after"]
    gain = 100 * (a.overall.accuracy - b.overall.accuracy)
    out = [
        f"Accuracy on {a.overall.n} held-out questions: {b.overall.accuracy:.1%} before, "
        f"{a.overall.accuracy:.1%} after ({gain:+.1f} points)."
    ]
    for name, what in (("search_free", "that need no search"), ("search_required", "that need a search")):
        old, new = b.row(name), a.row(name)
        if old and new:
            out.append(f"On questions {what}, {old.search_share:.0%} of responses search before, {new.search_share:.0%} after.")
    reward = f"Mean reward: {b.overall.reward:.3f} before, {a.overall.reward:.3f} after"
    oracle = found.get("oracle")
    return [*out, reward + (f"; the oracle policy earns {oracle.overall.reward:.3f}." if oracle else ".")]


def _sections(measures: Sequence[Measure]) -> list[tuple[str, list[Measure]]]:
    out: dict[str, list[Measure]] = {}
    for m in measures:
        out.setdefault(m.section, []).append(m)
    return list(out.items())
