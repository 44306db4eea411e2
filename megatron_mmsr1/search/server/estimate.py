"""What a run's searches will come to: calls, dollars and hours, from its config and its prices, before the first is made."""

from __future__ import annotations

import datetime
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.config.search import BackendSection, BudgetSection

STALE_DAYS = 180  # from then on a price is doubted
UNBILLED = ("trafilatura", "searxng", "ddgs", "retrieve")  # nobody's price list has them


@dataclass(slots=True)
class Stage:
    """One backend's part. `calls` and `usd` are a step's; `busy_s` is the least time that a step's calls take there."""

    kind: str
    backend: str
    calls: float
    usd: float | None  # None: no price in the config
    busy_s: float
    price_as_of: datetime.date | None = None


@dataclass(slots=True)
class Estimate:
    """Over `steps` steps. `hours` is search alone, at the slowest stage: the stages of many calls run beside each other."""

    steps: int
    trajectories: int  # a step
    stages: list[Stage]
    calls: float
    usd: float
    hours: float
    notes: list[str] = field(default_factory=list[str])

    def as_dict(self) -> dict[str, Any]:
        d = asdict(self)
        for s in d["stages"]:
            s["price_as_of"] = s["price_as_of"] and s["price_as_of"].isoformat()
        return d


def estimate(cfg: RunConfig, today: datetime.date | None = None) -> Estimate:
    """From `search.estimate`'s assumptions. Local backends cost neither calls nor money. What the store already holds is not
    known here, so this is for a run that begins with an empty one."""
    s, e = cfg.search, cfg.search.estimate
    prompts, group = cfg.data.prompts_per_step, cfg.data.group_size
    n = prompts * group
    text = n * e.text_per_trajectory * (1 - e.text_cached)
    # A group's rollouts share their image search: a prompt needs one if any of them asks.
    image = prompts * (1 - max(0.0, 1 - e.image_per_trajectory) ** group)
    k = cfg.protocol.top_k
    read = 0.0 if s.read.backend in ("none", "auto") else text * k
    wants = {"text": text, "image": image, "read": read, "summarise": text * k}
    stages = [_stage(kind, getattr(s, kind), calls, e.latency_s.get(kind, 1.0)) for kind, calls in wants.items()]
    stages = [x for x in stages if x is not None and s.mode != "replay-strict"]
    steps = cfg.train.steps
    notes = _notes(cfg, stages, today or datetime.datetime.now(datetime.UTC).date())
    per_step = sum(x.usd or 0.0 for x in stages)
    busiest = max((x.busy_s for x in stages), default=0.0)
    return Estimate(steps, n, stages, steps * sum(x.calls for x in stages), steps * per_step, steps * busiest / 3600, notes)


def _stage(kind: str, section: BackendSection, calls: float, latency_s: float) -> Stage | None:
    if section.backend in ("none", "auto") or is_local(kind, section.backend):
        return None
    busy = calls * latency_s / section.concurrency
    if section.per_second:
        busy = max(busy, calls / section.per_second)
    usd = None if section.usd_per_1000 is None else calls * section.usd_per_1000 / 1000
    return Stage(kind, section.backend, calls, usd, busy, section.price_as_of)


def is_local(kind: str, name: str) -> bool:
    """Whether the backend's class says so of itself. UsageError for a name that there is not."""
    from megatron_mmsr1.search.server.compose import registry

    module = sys.modules[registry(kind).get(name).__module__]
    own = (v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__)
    return any(getattr(v, "local", False) is True for v in own)


def _notes(cfg: RunConfig, stages: list[Stage], today: datetime.date) -> list[str]:
    """What the person should know before believing the numbers."""
    if cfg.search.mode == "replay-strict":
        return ["search.mode is replay-strict: no backend is asked and nothing is billed"]
    out: list[str] = []
    if cfg.search.url is not None:
        out.append(f"search.url={cfg.search.url} runs already: what it asks, and its prices and caps, are in its own config")
    elif not stages:
        return ["every backend is local: nothing is billed and nothing leaves the machine"]
    for x in stages:
        where = f"search.{x.kind}"
        if x.usd is None and x.backend not in UNBILLED:
            out.append(f"{where}: {x.backend} has no price in the config and counts as free; set usd_per_1000 and price_as_of")
        if x.price_as_of and (today - x.price_as_of).days > STALE_DAYS:
            out.append(f"{where}: the price is of {x.price_as_of}; look it up again")
        if (waits := _waits_s(cfg, x)) > cfg.search.deadline_s:
            out.append(
                f"{where}: calls may wait {waits:.0f} s in its line, over search.deadline_s={cfg.search.deadline_s:g}; raise "
                f"{where}.concurrency, or lower rollout.tool_concurrency={cfg.rollout.tool_concurrency}: what waits in the "
                "rollout waits under no deadline"
            )
    per_step_usd, per_step_calls = sum(x.usd or 0.0 for x in stages), sum(x.calls for x in stages)
    return out + _caps(cfg.search.budget, cfg.train.steps, per_step_usd, per_step_calls)


def _waits_s(cfg: RunConfig, x: Stage) -> float:
    """Seconds that the last in line waits at a stage when a worker has all of its calls in flight."""
    fan = cfg.protocol.top_k if x.kind in ("read", "summarise") else 1
    at_once = min(x.calls, cfg.rollout.tool_concurrency * cfg.data_parallel * fan)
    return x.busy_s * at_once / max(x.calls, 1)


def _caps(b: BudgetSection, steps: int, usd: float, calls: float) -> list[str]:
    out: list[str] = []
    for name, cap, need in (
        ("run_usd", b.run_usd, usd * steps),
        ("run_calls", b.run_calls, calls * steps),
        ("step_usd", b.step_usd, usd),
        ("step_calls", b.step_calls, calls),
    ):
        if cap is not None and need > cap:
            reach = f", at about step {int(steps * cap / need)} of {steps}" if name.startswith("run") else ""
            out.append(f"search.budget.{name}={cap:g} will be reached{reach}: {need:,.4g} are needed")
    if usd and not b.model_dump(exclude={"ledger"}, exclude_none=True):
        out.append("search.budget has no cap: nothing stops the spending; search.budget.run_usd would")
    return out


def show(found: Estimate) -> None:
    """As a table on the terminal."""
    import rich
    from rich.table import Table

    table = Table(title=f"{found.steps} steps of {found.trajectories} trajectories", title_justify="left")
    for name in ("stage", "backend"):
        table.add_column(name)
    for name in ("calls a step", "dollars a step", "price of", "seconds a step"):
        table.add_column(name, justify="right")
    for s in found.stages:
        usd = "no price" if s.usd is None else f"{s.usd:,.2f}"
        table.add_row(s.kind, s.backend, f"{s.calls:,.0f}", usd, str(s.price_as_of or ""), f"{s.busy_s:,.0f}")
    rich.print(table)
    print(f"in all: {found.calls:,.0f} calls, ${found.usd:,.2f}, {found.hours:,.1f} hours of search")
    for note in found.notes:
        print(f"- {note}")
