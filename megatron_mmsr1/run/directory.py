"""A run's directory: whether a configuration may go on in it, where it would go on, and whether nothing is left to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from megatron_mmsr1 import config
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.config.affects import differing
from megatron_mmsr1.data.files import write_text
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.run import starts
from megatron_mmsr1.run.lock import RunLock
from megatron_mmsr1.run.logs import read_metrics
from megatron_mmsr1.run.stop import Stop

ROWS = "rows.json"  # which rows of the data can be used (`data.usable_rows`)


@contextmanager
def open_run(cfg: RunConfig, check: Callable[[RunConfig], None], command: str) -> Iterator[RunLock]:
    """Lock the run's directory for `command` and keep the whole config in it, once `check` has let the config pass.

    UsageError for a directory that holds the work of another configuration, or that cannot be written; RunError for one in
    which another trainer runs.
    """
    out = Path(cfg.output)
    kept = out / "config.yaml"
    changed = differing(config.load(kept), cfg) if kept.is_file() and has_work(out) else []
    if changed:
        shown = ", ".join(changed[:6]) + (" …" if len(changed) > 6 else "")
        raise UsageError(f"{out} holds a run of another configuration; differing: {shown}. Name another output=")
    check(cfg)
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(RunLock(out, command))
            write_text(kept, config.dump(cfg))
            Stop(out).withdraw()  # of an earlier life
            starts.note(out)
        except OSError as e:
            raise UsageError(f"output={out} cannot be written ({e.strerror}): name another output=") from None
        yield lock


def has_work(out: Path) -> bool:
    """Whether anything there depends on the configuration: a run that failed at its start may begin again, corrected."""
    written = out / "metrics.jsonl"
    work = ("checkpoints", "rollouts", "eval", "model", "weights")
    return any((out / n).exists() for n in work) or (written.is_file() and written.stat().st_size > 0)


def checkpointed_step(out: Path) -> int:
    """The step that a run in `out` would resume at; 0 without a checkpoint."""
    from megatron_mmsr1.checkpoints.manifest import latest

    found = latest(out / "checkpoints")
    return step_of(found) if found else 0


def logged_steps(out: Path) -> int:
    """The steps that a run's metrics tell of; 0 without any."""
    file = out / "metrics.jsonl"
    rows = read_metrics(file) if file.is_file() else []
    return rows[-1]["step"] + 1 if rows else 0


def step_of(checkpoint: Path) -> int:
    """Of a checkpoint directory, step_000123. UsageError for one of another name."""
    name, _, number = checkpoint.name.rpartition("_")
    if name != "step" or not number.isdigit():
        raise UsageError(f"{checkpoint} is no checkpoint of a run: those are named step_NNNNNN")
    return int(number)
