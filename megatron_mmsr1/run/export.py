"""`mmsr1 export`: a run's trained model, its latest checkpoint, or one checkpoint, as a Hugging Face checkpoint with its page;
or the adapters of `model.lora` alone.

It starts no engine, no rollout worker and no logs, and writes nothing into the run: the run may be training meanwhile.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from megatron_mmsr1 import config
from megatron_mmsr1.data import files
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.procs.signals import exit_on_signals
from megatron_mmsr1.run import preflight
from megatron_mmsr1.run.directory import logged_steps, step_of
from megatron_mmsr1.run.torchrun import run_ranks

CONFIG = "config.yaml"


@dataclass(slots=True, frozen=True)
class Source:
    """What is exported: a finished model that can be copied, or a checkpoint that ranks have to convert."""

    directory: Path
    run: Path | None  # whose config and evaluations the page tells of
    step: int
    finished: bool


def export(source: Path, target: Path, *, adapter: bool = False) -> None:
    """Write `target`, complete or not at all, with README.md and serving.yaml where the run's config is known; with `adapter` a
    directory of peft's layout, which has neither.

    `source`: a run's directory, or a checkpoint in one. UsageError if it is neither, if `target` exists, or if the run has no
    adapters or trains more than them.
    """
    if target.exists():
        raise UsageError(f"{target} exists: name a directory that does not")
    found = find(source, merged=not adapter)
    if adapter:
        with files.building(target) as part:
            _convert(found, part, adapter=True)
        print(f"wrote {target}: the adapters after step {found.step}, for peft", file=sys.stderr)
        return
    with files.building(target) as part:
        if found.finished:
            shutil.copytree(found.directory, part, dirs_exist_ok=True)
        else:
            _convert(found, part)
        if found.run is None:
            print(f"{source} has no {CONFIG}: the model goes without its page and without serving.yaml", file=sys.stderr)
        else:
            from megatron_mmsr1.publish import model_card

            model_card.write(found.run, part, step=found.step)
    print(f"wrote {target}: the model after step {found.step}. Serve it: mmsr1 serve {target}", file=sys.stderr)


def find(source: Path, *, merged: bool = True) -> Source:
    """Where the newest weights below `source` are. A model/ that an extended run has left behind is not the newest, and is none
    where adapters are to be told from the weights beside them (`merged` is False)."""
    from megatron_mmsr1.checkpoints.manifest import MANIFEST, latest, read

    run = source if (source / CONFIG).is_file() else None
    if (source / MANIFEST).is_file() and not (source / "config.json").is_file():
        home = source.resolve().parent.parent
        return Source(source, home if (home / CONFIG).is_file() else None, step_of(source), False)
    checkpoint = latest(source / "checkpoints")
    done = step_of(checkpoint) if checkpoint else 0
    model = source / "model"
    newest = checkpoint is None or ((model / MANIFEST).is_file() and read(model).step == done)
    if merged and newest and (model / "config.json").is_file():
        return Source(model, run, done or logged_steps(source), True)
    if checkpoint is None:
        if not merged and run is not None:
            raise UsageError(f"{source} has no checkpoint, where its adapters would be: export without --adapter")
        raise UsageError(
            f"{source} is no run with a trained model or a checkpoint (looked for model/ and checkpoints/latest), and no "
            "checkpoint of a run (step_NNNNNN with manifest.json)"
        )
    return Source(checkpoint, run, done, False)


def _convert(found: Source, target: Path, *, adapter: bool = False) -> None:
    """By ranks, in the layout that the run was trained in."""
    if found.run is None:
        raise UsageError(f"{found.directory}: no {CONFIG} in the run that it belongs to: leave the checkpoint in its run")
    cfg = config.load(found.run / CONFIG)
    if adapter and cfg.model.lora is None:
        raise UsageError(f"{found.run / CONFIG}: the run has no model.lora: export the whole model, without --adapter")
    if adapter and not cfg.model.vision_frozen:
        raise UsageError(
            f"{found.run / CONFIG}: the run trains the vision tower or its merger too, which adapters do not hold: export the "
            "whole model, without --adapter"
        )
    preflight.model(cfg.model.path, f"{found.run / CONFIG}: model.path", cfg.model.family)
    print(f"converting {found.directory} ...", file=sys.stderr, flush=True)
    logs = Path(tempfile.mkdtemp(prefix="mmsr1-export-"))
    args = [str(found.run / CONFIG), str(found.directory), str(target), str(found.step), *["--adapter"] * adapter]
    with exit_on_signals():
        run_ranks(cfg, "megatron_mmsr1.run.export_ranks", args, logs / "export.log")
    shutil.rmtree(logs)
