"""Which curves a report draws, in which plots: chosen ones first, then whatever else the metrics hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_mmsr1.eval.metrics import ORDER
from megatron_mmsr1.eval.results import EvalResult

Row = dict[str, Any]
MEANS = ("tool/seconds", "tool/cached", "turns/mean")  # are not 0 where they are left out: there was nothing to average


@dataclass(slots=True, frozen=True)
class Curve:
    label: str
    of: Callable[[Row], float | None]


@dataclass(slots=True, frozen=True)
class Plot:
    title: str
    curves: list[Curve]
    share: bool = False  # its axis is 0 to 1
    rare: bool = False  # folded away


def wanted(names: Iterable[str]) -> list[Plot]:
    """The plots that metrics of these names allow."""
    left = {n for n in names if not n.startswith(("x/", "alarm"))} - {"step", "time"}
    out: list[Plot] = []

    def plot(title: str, metrics: Sequence[tuple[str, str]], *, share: bool = False, more: Sequence[Curve] = ()) -> None:
        found = [(label, m) for label, m in metrics if m in left]
        left.difference_update(m for _, m in found)
        if curves := [*(Curve(label, _metric(m)) for label, m in found), *more]:
            out.append(Plot(title, curves, share))

    def matching(pattern: str) -> list[tuple[str, str]]:
        found = [(m[1], n) for n in left if (m := re.fullmatch(pattern, n))]
        return sorted(found, key=lambda f: (ORDER.index(f[0]) if f[0] in ORDER else len(ORDER), f[0]))

    kinds = "kind" if any(n.startswith("kind/") for n in left) else "category"
    calls = [n for n in left if n.startswith("tool/calls_")]
    plot(
        "Reward and accuracy", [("reward", "reward/mean"), ("accuracy", "reward/acc"), ("format", "reward/format")], share=True
    )
    plot("Spread of the reward", [("standard deviation", "reward/std"), ("groups of one reward", "groups/equal")])
    plot("Rolled-out groups with variance", [("share", "shaping/live_share")], share=True)
    plot("Groups carried, and rounds", [(k.replace("_", " "), n) for k, n in matching(r"shaping/((?:carried|rounds|short).*)")])
    plot("Parts of the reward", matching(r"reward/(.+)"))
    plot("Accuracy by kind of question", matching(rf"{kinds}/([^/]+)/acc"), share=True)
    plot("Share that calls a tool", [*matching(rf"{kinds}/([^/]+)/search_share"), ("all", "search/share")], share=True)
    each = [Curve(n.removeprefix("tool/calls_"), _per_trajectory([n])) for n in sorted(calls)]
    plot("Calls a trajectory", [], more=[*each, Curve("all", _per_trajectory(calls))] if calls else [])
    left.difference_update(calls)
    plot("Share that asks for a tool", matching(r"tool/share_(.+)"), share=True)
    plot("Seconds a call", [("mean", "tool/seconds")])
    bad = [
        (s.replace("_", " "), f"tool/{s}") for s in ("timeout", "rate_limited", "upstream_error", "refused", "budget", "empty")
    ]
    plot("Calls that brought nothing", bad)
    plot("Search: cost in dollars", [("since its server began: " + k, n) for k, n in matching(r"search_server/(.+)/usd")])
    plot("Loss", [("loss", "loss"), ("policy", "pg_loss")])
    plot("Gradient norm", [("norm", "grad_norm")])
    plot("KL", [("to the reference", "kl"), ("coefficient", "kl_coef")])
    plot("Share of tokens that are clipped", [("policy loss", "clip_fraction"), ("correction", "correction_clipped")])
    plot("Entropy", [("nats a token", "entropy")])
    plot("Trainer and engine: mean |difference| of log-probs", [("difference", "logprob_diff_mean")])
    plot("Learning rate", [("rate", "lr")])
    plot("Tokens a trajectory", [(n, f"tokens/{n}") for n in ("trajectory", "sampled", "observed")])
    plot("Turns and pictures a trajectory", [("turns", "turns/mean"), ("pictures", "images/trajectory")])
    plot("How trajectories end", [(label.replace("_", " "), n) for label, n in matching(r"status/(.+)")])
    names_of_stages = {"sync": "weight update", "train": "training"}
    plot("Seconds a step", [(names_of_stages.get(k, k), n) for k, n in matching(r"seconds/(.+)")])
    plot("Tokens a second", [("trained on", "tokens_per_s"), ("sampled", "rollout/tokens_per_s")])
    plot("Memory of a rank, GiB", [("highest", "peak_memory_gib")])
    others: dict[str, list[str]] = {}
    for n in sorted(left - {"train_seconds"}):
        others.setdefault(n.rpartition("/")[0] or n, []).append(n)
    return out + [Plot(k, [Curve(n.rpartition("/")[2], _metric(n)) for n in ms], rare=True) for k, ms in others.items()]


def heldout_kinds(results: Sequence[EvalResult]) -> list[str]:
    """The kinds of question that every one of these evaluations has."""
    found = [[r.kind for r in result.rows[:-1]] for result in results]
    return [k for k in found[0] if k != "all" and all(k in f for f in found)] if found else []


def _metric(name: str) -> Callable[[Row], float | None]:
    """Its value; of a count or a tool's share, which rows leave out where it is 0, that 0."""
    of_kind = re.fullmatch(r"((?:kind|category)/[^/]+)/\w+_share", name)
    counted = name.startswith(("status/", "tool/", "turns/")) and name not in MEANS
    there = f"{of_kind[1]}/acc" if of_kind else "trajectories" if counted else name
    return lambda row: row.get(name, 0.0) if row.get(there) is not None else None


def _per_trajectory(metrics: Sequence[str]) -> Callable[[Row], float | None]:
    """Counts that are left out of a row are 0."""

    def of(row: Row) -> float | None:
        made = row.get("trajectories")
        return sum(row.get(m) or 0 for m in metrics) / made if made else None

    return of
