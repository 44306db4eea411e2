"""What a run left behind, read for its report. Parts that a run has not made (yet) are noted, not fatal."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from megatron_mmsr1 import config
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.eval.results import AFTER, EvalResult, load_all, of_model, searched
from megatron_mmsr1.report.questions import Group, Life, groups, lives, steps_with_rollouts
from megatron_mmsr1.run import starts
from megatron_mmsr1.run.logs import read_metrics
from megatron_mmsr1.trajectory import Trajectory

CONFIG = "config.yaml"


class Tokenizer(Protocol):
    """What the examples need of a `tokenizers.Tokenizer`, which has no types."""

    def token_to_id(self, token: str) -> int | None: ...
    def decode(self, ids: list[int], skip_special_tokens: bool) -> str: ...


@dataclass(slots=True)
class RunData:
    directory: Path
    cfg: RunConfig
    metrics: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    results: list[EvalResult] = field(default_factory=list[EvalResult])
    trajectories: list[Trajectory] = field(default_factory=list[Trajectory])  # the examples come from these
    source: str = ""  # the dump they were read from
    earlier: dict[str, Trajectory] = field(default_factory=dict[str, Trajectory])  # by prompt: answers before training
    environment: dict[str, Any] = field(default_factory=dict[str, Any])
    tokenizer: Tokenizer | None = None
    searched: str = ""
    label: str = ""  # which run it is, where a page shows several
    starts: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    lives: list[Life] = field(default_factory=list[Life])
    worst: list[Group] = field(default_factory=list[Group])
    best: list[Group] = field(default_factory=list[Group])
    notes: list[str] = field(default_factory=list[str])


def gather(directory: Path) -> RunData:
    """Read RUN. Raises UsageError if there is no config.yaml in it, RunError naming a file that is damaged."""
    require_run(directory)
    data = RunData(directory, config.load(directory / CONFIG))
    if (directory / "metrics.jsonl").is_file():
        data.metrics = read_metrics(directory / "metrics.jsonl")
    else:
        data.notes.append("There are no metrics: the run has not finished a step.")
    done = (data.metrics[-1]["step"] + 1) if data.metrics else 0
    data.results, refused = of_model(load_all(directory / "eval"), max(done, data.cfg.train.steps))
    data.notes += refused
    if not data.results:
        data.notes.append("There is no evaluation: the config names no held-out data, or the run has not got there.")
    _examples(data)
    environment = directory / "environment.json"
    if environment.is_file():
        data.environment = json.loads(environment.read_text())
    data.tokenizer = _tokenizer(data)
    data.searched = _searched(data)
    data.starts = starts.read(directory)
    data.lives = lives(directory / "rollouts")
    data.worst, data.best = groups(directory / "rollouts")
    return data


def require_run(directory: Path) -> None:
    """UsageError for what is no run's directory."""
    if not (directory / CONFIG).is_file():
        raise UsageError(f"{directory} is not a run's directory: it has no {CONFIG} (mmsr1 train and mmsr1 sft make one)")


def labels(directories: list[Path]) -> list[str]:
    """A name for each run: the end of its path, as short as tells them apart."""
    parts = [d.resolve().parts for d in directories]
    for n in range(1, max(len(p) for p in parts) + 1):
        names = ["/".join(p[-n:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise UsageError(f"{directories[0]} is named twice: name different runs")


def _examples(data: RunData) -> None:
    """The trained model's held-out answers if there are any, else the newest rollouts."""
    from megatron_mmsr1.rollout.dump import read_dump

    rollouts = data.directory / "rollouts"
    steps = steps_with_rollouts(rollouts)
    if (rollouts / "eval_after.jsonl.zst").is_file() and any(r.name == AFTER for r in data.results):
        key: str | int | None = "eval_after"
    elif steps:
        key = steps[-1]
    else:
        key = "eval_before" if (rollouts / "eval_before.jsonl.zst").is_file() else None
    if key is None:
        data.notes.append("There are no rollouts to show.")
        return
    data.trajectories, _ = read_dump(rollouts, key)
    data.source = "held-out questions, after training" if key == "eval_after" else f"rollouts of step {key}"
    if key == "eval_after" and (rollouts / "eval_before.jsonl.zst").is_file():
        before, _ = read_dump(rollouts, "eval_before")
        data.earlier = {t.prompt_id: t for t in before}
    elif key == "eval_before":
        data.source = "held-out questions, before training"


def _tokenizer(data: RunData) -> Tokenizer | None:
    import tokenizers

    places = [data.directory / "model", Path(data.cfg.model.path)]
    for place in places:
        if (place / "tokenizer.json").is_file():
            return cast(Any, tokenizers).Tokenizer.from_file(str(place / "tokenizer.json"))
    looked = " or ".join(map(str, places))
    data.notes.append(f"There is no tokenizer.json in {looked}: the examples are shown by turns, not by tokens.")
    return None


def _searched(data: RunData) -> str:
    """What was searched, as the search server itself named it: its snapshot, mode and backends; else the config's words."""
    held = searched(data.directory, data.results)
    if not held:
        return data.cfg.search.url or data.cfg.search.corpus or "none"
    parts = ", ".join(f"{kind} {b['name']} {b['version']}" for kind, b in held.get("backends", {}).items())
    return f"snapshot {held.get('id') or 'not kept'} ({held.get('mode')}; {parts})"
