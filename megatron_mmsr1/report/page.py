"""The report's page from its parts."""

from __future__ import annotations

import time
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from megatron_mmsr1 import __version__, config
from megatron_mmsr1.config.algorithm import AlgorithmConfig
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.eval.results import EvalResult, Measure, compare
from megatron_mmsr1.report.examples import Example
from megatron_mmsr1.report.gather import RunData
from megatron_mmsr1.report.plots import Plot


def render(data: RunData, plots: Sequence[Plot], examples: Sequence[Example]) -> str:
    """The whole page. Everything is escaped but the SVG that our own plots drew."""
    env = Environment(
        loader=PackageLoader("megatron_mmsr1.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return env.get_template("template.html").render(
        cfg=data.cfg,
        config_text=config.dump(data.cfg),
        version=__version__,
        made=time.strftime("%Y-%m-%d %H:%M"),
        facts=_facts(data),
        headline=headline(data.results),
        results=data.results,
        sections=_sections(compare(data.results)) if data.results else [],
        plots=[(p.title, Markup(p.svg)) for p in plots],
        examples=examples,
        source=data.source,
        environment=_environment(data),
        notes=data.notes,
    )


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


def _parts_of(algorithm: AlgorithmConfig) -> str:
    return ", ".join(f"{seam} {_settings_of(settings)}" for seam, settings in algorithm.parts().items())


def _settings_of(part: Section) -> str:
    """`NAME (key value, ...)`, of a part of the run."""
    said = part.model_dump(mode="json", serialize_as_any=True)
    name = said.pop("name", "")
    return f"{name} ({', '.join(f'{k} {v}' for k, v in said.items())})" if said else str(name)


def _facts(data: RunData) -> list[tuple[str, str]]:
    c = data.cfg
    m = c.megatron
    steps = (data.metrics[-1]["step"] + 1) if data.metrics else 0
    sft = c.algorithm.supervised
    how, batch = "supervised cold start", f"{c.sft.examples_per_step} demonstrations"
    if not sft:
        how = f"{c.algorithm.name}: {_parts_of(c.algorithm)}; KL {c.algorithm.kl_coef:g}"
        batch = f"{c.data.prompts_per_step} prompts x {c.data.group_size} rollouts"
    sizes = (m.tensor_parallel, m.pipeline_parallel, m.context_parallel, c.data_parallel)
    spread = zip(("tensor", "pipeline", "context", "data"), sizes, strict=True)
    layout = ", ".join(f"{name} {size}" for name, size in spread)
    facts = [
        ("algorithm", how),
        ("model", c.model.path),
        ("steps", f"{steps} of {c.train.steps}, {batch} each, learning rate {c.optimizer.lr:g}"),
        ("parallel", f"{layout}; {c.model.dtype}"),
    ]
    if sft:
        return [*facts, ("seed", str(c.seed))]
    return [
        *facts,
        ("reward", _settings_of(c.reward)),
        ("search", data.searched),
        ("seed", str(c.seed)),
    ]


def _environment(data: RunData) -> list[tuple[str, str]]:
    e = data.environment
    if not e:
        return []
    machine, cuda = e["machine"], e["cuda"]
    devices = ", ".join(d["name"] for d in cuda["devices"]) or "no GPU"
    packages = ", ".join(f"{name} {version}" for name, version in e["packages"].items() if version)
    return [
        ("machine", f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gib']} GiB, {devices}"),
        ("system", machine["system"]),
        ("python", e["python"]),
        ("collectives", cuda["backend"]),
        ("attention", f"trainer: {e['attention']['trainer']}; engine: {e['attention']['engine']}"),
        ("packages", f"megatron-mmsr1 {__version__}, {packages}"),
    ]
