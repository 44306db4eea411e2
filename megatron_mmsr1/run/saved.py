"""A run's checkpoints as they lie there: their age, size and scores, and which of them are removed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mmsr1.checkpoints.manifest import MANIFEST, Manifest, directories, faults, named_latest, read
from megatron_mmsr1.checkpoints.retention import Rule, Saved, removable
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.eval.results import AFTER, EvalResult
from megatron_mmsr1.run.directory import step_of
from megatron_mmsr1.run.logs import read_metrics

LAYOUT = ("TP", "PP", "DP", "CP", "ETP", "EP")  # as a manifest's numbers stand
OF_EVALUATION = "eval/"  # how the name of a metric begins that is an evaluation's


@dataclass(frozen=True, slots=True)
class Found:
    """`held`: None for one that is not complete; `why` then says what is wrong with it."""

    directory: Path
    step: int
    hours: float
    held: Manifest | None
    why: str = ""

    @property
    def bytes(self) -> int:
        return self.held.bytes if self.held else 0


def checkpoints(home: Path) -> Iterator[Found]:
    """Those in the directory `home` by their step."""
    for directory in directories(home):
        try:
            held = read(directory, "it is not complete")
        except RunError as e:
            yield Found(directory, step_of(directory), 0.0, None, str(e))
            continue
        yield Found(directory, step_of(directory), (time.time() - (directory / MANIFEST).stat().st_mtime) / 3600, held)


def scores(out: Path, metric: str) -> dict[int, float]:
    """By the number of steps done, of which the run in `out` told `metric`: eval/FIELD is a number of all questions of an
    evaluation (accuracy, reward), everything else a metric of the last step. With a minus before it less is better, and the
    numbers' signs are changed. RunError for a damaged file."""
    sign, name = (-1.0, metric[1:]) if metric.startswith("-") else (1.0, metric)
    if name.startswith(OF_EVALUATION):
        made = [EvalResult.load(f) for f in (out / "eval").glob("*.json") if f.stem == AFTER or f.stem.startswith("step_")]
        told = {r.meta.get("weights"): getattr(r.overall, name.removeprefix(OF_EVALUATION), None) for r in made}
    else:
        file = out / "metrics.jsonl"
        told = {row["step"] + 1: row.get(name) for row in (read_metrics(file) if file.is_file() else [])}
    return {step: sign * v for step, v in told.items() if isinstance(step, int) and isinstance(v, int | float)}


def listed(run: Path, *, contents: bool) -> Iterator[dict[str, Any]]:
    """A row a checkpoint of the run, in the order of their steps, for people and programs. `fault`: "" where every file has its
    size and, with `contents`, its checksum. Metrics are None where the run told none."""
    latest = named_latest(run / "checkpoints")
    metrics = ("eval/reward", "eval/accuracy", "reward/mean", "loss")
    told = {name: scores(run, name) for name in metrics}
    for c in checkpoints(run / "checkpoints"):
        fault = c.why
        if c.held:
            fault = "; ".join(faults(c.directory, c.held, contents=contents))
        yield {
            "name": c.directory.name,
            "step": c.step,
            "latest": c.directory.name == latest,
            "layout": " x ".join(f"{n}{size}" for n, size in zip(LAYOUT, c.held.layout, strict=False)) if c.held else "",
            "bytes": c.bytes,
            "hours": round(c.hours, 3),
            "fault": fault,
            "verified": contents and not fault,
        } | {name: told[name].get(c.step) for name in metrics}


def prune(cfg: RunConfig, current: Path) -> None:
    """Remove what the run's rule does not keep, now that `current` was written. Raises OSError, and RunError as `scores`."""
    t, home = cfg.train, current.parent
    of_step = scores(Path(cfg.output), t.keep_metric) if t.keep_best else dict[int, float]()
    found = [Saved(c.directory.name, c.step, c.hours, of_step.get(c.step)) for c in checkpoints(home) if c.held]
    rule = Rule(t.keep_checkpoints, t.keep_every, t.keep_hours, t.keep_best)
    for name in removable(found, rule, current=step_of(current), latest=named_latest(home)):
        shutil.rmtree(home / name)
