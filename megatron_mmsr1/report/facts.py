"""What a run is and was, as names and values: settings, command and commit, duration, cost, machine."""

from __future__ import annotations

from itertools import pairwise

from megatron_mmsr1 import __version__
from megatron_mmsr1.config.algorithm import AlgorithmConfig
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.report.gather import RunData
from megatron_mmsr1.report.text import visible


def _parts_of(algorithm: AlgorithmConfig) -> str:
    return ", ".join(f"{seam} {_settings_of(settings)}" for seam, settings in algorithm.parts().items())


def _settings_of(part: Section) -> str:
    """`NAME (key value, ...)`, of a part of the run."""
    said = part.model_dump(mode="json", serialize_as_any=True)
    name = said.pop("name", "")
    return f"{name} ({', '.join(f'{k} {v}' for k, v in said.items())})" if said else str(name)


def facts(data: RunData) -> list[tuple[str, str]]:
    c = data.cfg
    m = c.megatron
    steps = (data.metrics[-1]["step"] + 1) if data.metrics else 0
    sft = c.algorithm.supervised
    how, batch = "supervised cold start", f"{c.sft.examples_per_step} demonstrations"
    if not sft:
        how = f"{c.algorithm.name}: {_parts_of(c.algorithm)}; KL {c.algorithm.kl_coef:g}"
        batch = f"{c.data.prompts_per_step} prompts x {c.data.group_size} rollouts"
    sizes = (m.tensor_parallel, m.pipeline_parallel, m.context_parallel, m.expert_parallel, c.data_parallel)
    spread = zip(("tensor", "pipeline", "context", "expert", "data"), sizes, strict=True)
    layout = ", ".join(f"{name} {size}" for name, size in spread)
    facts = [
        ("algorithm", how),
        ("model", c.model.path),
        ("steps", f"{steps} of {c.train.steps}, {batch} each, learning rate {c.optimizer.lr:g}"),
        ("parallel", f"{layout}; {c.model.dtype}"),
    ]
    if not sft:
        facts += [("reward", _settings_of(c.reward)), ("search", data.searched), ("cost of searches", _cost(data))]
    facts += [("seed", str(c.seed)), ("duration", _duration(data))]
    if data.starts:
        last = data.starts[-1]
        again = f"; started {len(data.starts)} times, at first {data.starts[0]['at']}" if len(data.starts) > 1 else ""
        facts += [("command", f"{last['command']} ({last['at']}{again})"), ("commit", last["commit"] or "not of a checkout")]
    return [(name, visible(value)) for name, value in facts]


def _duration(data: RunData) -> str:
    """The time between the first step and the last, and what the steps themselves took."""
    times = [r["time"] for r in data.metrics if "time" in r]
    stages = sum(v for r in data.metrics for n, v in r.items() if n.startswith("seconds/") and v)
    evaluations = sum(r.meta.get("seconds", 0.0) for r in data.results)
    said = f"; evaluations {_hours(evaluations)}" if evaluations else ""
    between = f"{_hours(times[-1] - times[0])} from the first step's end to the last one's; " if len(times) > 1 else ""
    return f"{between}the steps themselves {_hours(stages)}{said}"


def _hours(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _cost(data: RunData) -> str:
    """Calls of all steps, and what the search server counted as paid: its counts begin anew with each server."""
    calls = sum(v for r in data.metrics for n, v in r.items() if n.startswith("tool/calls_") and v)
    paid = 0.0
    for name in {n for r in data.metrics for n in r if n.startswith("search_server/") and n.endswith("/usd")}:
        values = [0.0, *(r[name] for r in data.metrics if r.get(name) is not None)]
        paid += sum(now - before if now >= before else now for before, now in pairwise(values))
    return f"{calls:,.0f} calls in training's rollouts; ${paid:,.2f} by the search server's count"


def environment(data: RunData) -> list[tuple[str, str]]:
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
        ("attention", "; ".join(f"{who}: {what}" for who, what in e["attention"].items())),
        ("packages", f"megatron-mmsr1 {__version__}, {packages}"),
    ]
