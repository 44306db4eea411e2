"""Runs the checks on every task of a job step, gathers what they found, and compares the nodes."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.doctor.check import Check, Finding, Level, Place, Who
from megatron_mmsr1.doctor.checks import NAMES
from megatron_mmsr1.doctor.tasks import Tasks, join


@dataclass(frozen=True, slots=True)
class Found:
    """A finding, and where it is from. `node`: "" for what was found between nodes."""

    node: str
    check: str
    finding: Finding

    def plain(self) -> dict[str, Any]:
        return {"node": self.node, "check": self.check, **asdict(self.finding)}


def examine(cfg: RunConfig | None, only: Sequence[str] = ()) -> list[Found] | None:
    """What all tasks found, node by node, then what differs between nodes; None for every task but the first.

    `only`: names of checks; default: all. Collective: every task of the step calls it alike. Raises RunError where the tasks do
    not meet.
    """
    tasks = join()
    own: list[dict[str, Any]] = []
    for name in NAMES:
        if only and name not in only:
            continue
        found = _run(name, tasks, cfg, asked=name in only)
        own += [Found(tasks.node, name, f).plain() for f in found]
    everyone = tasks.gather("findings", own)
    tasks.leave()
    if tasks.rank:
        return None
    rows = [Found(row["node"], row["check"], Finding.read(row)) for of_task in everyone for row in of_task]
    rows.sort(key=lambda r: (tasks.nodes.index(r.node), NAMES.index(r.check)))
    return rows + differences(rows)


def check(name: str) -> Check:
    return importlib.import_module(f"megatron_mmsr1.doctor.checks.{name}").CHECK


def _run(name: str, tasks: Tasks, cfg: RunConfig | None, *, asked: bool) -> list[Finding]:
    this = check(name)
    among = {Who.FIRST: [0], Who.NODES: tasks.firsts, Who.TASKS: list(range(tasks.world))}[this.who]
    tasks.gather(f"before {name}", True)  # what waits for another task inside a check waits for that check alone
    if tasks.rank not in among:
        return []
    try:
        return this.run(Place(tasks, cfg, asked))
    except Exception as e:
        if os.environ.get("MMSR1_DEBUG") == "1":
            raise
        return [Finding(name, "failed", Level.ERROR, f"{type(e).__name__}: {e}")]


def differences(rows: Sequence[Found]) -> list[Found]:
    """An error for each thing that must be alike on all nodes, and is not."""
    values: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        if row.finding.alike:
            values.setdefault((row.check, row.finding.what), {})[row.node] = row.finding.value
    out: list[Found] = []
    for (name, what), by_node in values.items():
        if len(set(by_node.values())) > 1:
            where = {v: ", ".join(n for n in by_node if by_node[n] == v) for v in by_node.values()}
            said = "; ".join(f"{v} on {nodes}" for v, nodes in where.items())
            advice = "the nodes of a job must be alike: one image or environment, one kind of GPU, one driver"
            out.append(Found("", name, Finding(what, said, Level.ERROR, advice)))
    return out


def worst(rows: Sequence[Found]) -> Level:
    levels = {row.finding.level for row in rows}
    return next((level for level in (Level.ERROR, Level.WARNING) if level in levels), Level.OK)
