"""What a run writes as it goes: metrics.jsonl always, TensorBoard and wandb by config, the environment, a table of samples.

metrics.jsonl holds one object a step ({"step", "time", name: number, ...}), flushed line by line, samples.jsonl a few of its
trajectories. A resumed run cuts the lines of steps that it will do again (and a line torn by a kill) from both, so they read as
if nothing had happened; TensorBoard is told to purge the same steps.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from megatron_mmsr1.config import RunConfig, dump
from megatron_mmsr1.data import files
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.procs.facts import collect

Value = float | int


class RunLog:
    """The logs of the run in `directory`; steps from `resume_step` on are to be done (again), but for those in `done`.
    `attention`: the trainer's, where there is one.

    Raises UsageError if logging.wandb is on without the extra, RunError if metrics.jsonl is damaged before its last line.
    """

    def __init__(
        self,
        directory: Path,
        cfg: RunConfig,
        *,
        resume_step: int = 0,
        done: Collection[int] = frozenset(),
        attention: str = "",
    ) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "metrics.jsonl"
        for kept in (self.path, directory / "samples.jsonl"):
            cut_from(kept, resume_step, done=done)
        self.logged = {row["step"] for row in read_metrics(self.path)} if self.path.is_file() else set[int]()
        environment = collect()
        environment["attention"] |= {"trainer": attention} if attention else {}
        files.write_text(directory / "environment.json", json.dumps(environment, indent=1) + "\n")
        self._file = self.path.open("a", encoding="utf-8")
        self._board = TensorBoard(directory / "tensorboard", resume_step) if cfg.logging.tensorboard else None
        self._wandb = _start_wandb(directory, cfg) if cfg.logging.wandb else None

    def write(self, step: int, metrics: Mapping[str, Value]) -> None:
        """One step's metrics, flat. A value that is not finite is written as null: JSON has no NaN."""
        values = {k: float(v) if not isinstance(v, int) else v for k, v in metrics.items()}
        line = {"step": step, "time": round(time.time(), 3)} | {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._board:
            self._board.write(step, values)
        if self._wandb:
            self._wandb.log(values, step=step)

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """A few trajectories as a table (one dict a row, the same keys): samples.jsonl, and wandb's table."""
        with (self.directory / "samples.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps({"step": step, "rows": rows}, ensure_ascii=False) + "\n")
        if self._wandb and rows:
            import wandb

            table = wandb.Table(columns=[*rows[0]], data=[[r[c] for c in rows[0]] for r in rows])
            self._wandb.log({"samples": table}, step=step)

    def info(self, message: str) -> None:
        """A line for the person and for RUN/run.log."""
        self._say(message)

    def warn(self, message: str) -> None:
        """As `info`, marked; what should not be overlooked."""
        self._say(f"warning: {message}")

    def _say(self, line: str) -> None:
        with (self.directory / "run.log").open("a", encoding="utf-8") as f:
            f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a metrics.jsonl; a line torn at the end is left out. RunError names a damaged line elsewhere."""
    return [row for _, row in _lines(path)]


def cut_from(path: Path, step: int, *, done: Collection[int] = frozenset()) -> None:
    """Drop the lines of steps >= `step` but those in `done`, and a torn last line. Atomic: a kill leaves the old file or
    the new."""
    if not path.is_file():
        return
    keep = b"".join(raw for raw, row in _lines(path) if row["step"] < step or row["step"] in done)
    if keep == path.read_bytes():
        return
    files.write_bytes(path, keep)


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    raw_lines = path.read_bytes().splitlines(keepends=True)
    for n, raw in enumerate(raw_lines, 1):
        if n == len(raw_lines) and not raw.endswith(b"\n"):
            return  # torn by a kill in the middle of a write
        try:
            row = json.loads(raw)
            row["step"]
        except (ValueError, KeyError, TypeError) as e:
            raise RunError(f"{path}:{n}: not a line of a step ({e}): repair or remove that line, then resume") from e
        yield raw, row


class TensorBoard:
    """Scalars through tensorboard's own event writer, which needs no torch."""

    def __init__(self, directory: Path, purge_step: int) -> None:
        # By name: the classes of generated protobuf modules are invisible to a type checker.
        event, summary = (import_module(f"tensorboard.compat.proto.{m}_pb2") for m in ("event", "summary"))
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event.Event, summary.Summary
        written = directory.is_dir() and any(directory.iterdir())  # by an earlier life, which may have made no checkpoint
        self._writer = EventFileWriter(str(directory))
        if written:
            start = event.SessionLog(status=event.SessionLog.START)
            self._writer.add_event(event.Event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        scalars = [self._summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _start_wandb(directory: Path, cfg: RunConfig) -> Any:
    """A wandb run that a resumed process continues. Offline unless WANDB_MODE or WANDB_API_KEY says otherwise."""
    try:
        import wandb
    except ImportError as e:
        raise UsageError(
            "logging.wandb=true, but wandb is not installed: add the extra (uv pip install -e '.[wandb]') "
            "or set logging.wandb=false; metrics.jsonl and TensorBoard hold the same numbers"
        ) from e
    import yaml

    # None leaves it to wandb, which reads WANDB_MODE.
    mode = None if os.environ.get("WANDB_MODE") else "online" if os.environ.get("WANDB_API_KEY") else "offline"
    id_file = directory / "wandb_id"
    if not id_file.is_file():
        files.write_text(id_file, secrets.token_hex(4))
    return wandb.init(
        project=cfg.logging.wandb_project,
        name=cfg.name,
        id=id_file.read_text().strip(),
        resume="allow",
        dir=str(directory),
        mode=mode,
        config=yaml.safe_load(dump(cfg)),
    )
