"""`mmsr1 slurm submit|status|logs|cancel`: runs as Slurm jobs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_mmsr1.cli.parts import Verbs, group, verb, with_config
from megatron_mmsr1.errors import UsageError

if TYPE_CHECKING:
    from megatron_mmsr1.cluster.slurm.submission import Submission


def add(verbs: Verbs[argparse.ArgumentParser]) -> None:
    slurm = group(verbs, "slurm", "submit runs as Slurm jobs, and look after them")
    p = with_config(
        verb(
            slurm,
            "submit",
            _submit,
            "write, check and submit a run's job",
            "mmsr1 slurm submit configs/atlas.yaml slurm.partition=gpu --follow",
        )
    )
    p.add_argument("--verb", choices=["train", "sft", "eval"], help="default: train, or sft for a supervised algorithm")
    p.add_argument("--then", metavar="VERB,...", default="", help="jobs after it, each if the one before succeeds: eval,export")
    p.add_argument("--sweep", metavar="key=a,b,c", help="an array of runs, one a value, each below OUTPUT/sweep")
    p.add_argument("--follow", action="store_true", help="show what the jobs say until they are over; Ctrl-C leaves them alone")
    for name, run, what in (
        (
            "status",
            _status,
            "show state, restarts, step and last line of the jobs submitted last, and of earlier ones in the queue",
        ),
        ("logs", _logs, "show the end of the log of the jobs submitted last"),
        ("cancel", _cancel, "cancel the jobs submitted last, and wait until they are gone"),
    ):
        p = verb(slurm, name, run, what, f"mmsr1 slurm {name} configs/atlas.yaml")
        p.add_argument("config", metavar="CONFIG", help="the run's config, or its output directory")
        p.add_argument("override", metavar="key=value", nargs="*", default=[], help="what it was submitted with")
        if name == "logs":
            p.add_argument("--step", help="of this step's agents (trainer, engines) instead of the head")
            p.add_argument("--lines", type=int, default=40, help="how many (default: 40)")


def _submit(args: argparse.Namespace) -> None:
    from megatron_mmsr1 import config
    from megatron_mmsr1.cluster.slurm.jobs import THEN, Sweep, missing_inputs, verb_of
    from megatron_mmsr1.cluster.slurm.submission import submit

    cfg = config.load(args.config, args.override)
    then = [v for v in args.then.split(",") if v]
    if unknown := [v for v in then if v not in THEN]:
        raise UsageError(f"--then {args.then}: {unknown[0]} cannot follow; {', '.join(THEN)} can")
    chosen = args.verb or verb_of(cfg)
    if then and chosen == "eval":
        raise UsageError("--then wants a run that trains: an evaluation leaves no model")
    for missing in missing_inputs(chosen, cfg):
        print(f"warning: {missing} is not on this machine; the job ends at once where the nodes lack it too", file=sys.stderr)
    found = submit(cfg, chosen, then=then, sweep=Sweep.of(args.sweep) if args.sweep else None)
    for job in found.jobs:
        print(job.id)
        many = f", an array of {len(job.tasks)}" if len(job.tasks) > 1 else ""
        print(f"submitted job {job.id} ({job.verb}{many}): {found.directory}/{job.verb}.sbatch", file=sys.stderr)
    if args.follow:
        from megatron_mmsr1.cluster.slurm.watching import follow

        try:
            follow(found, lambda line: print(line, flush=True))
        except KeyboardInterrupt:
            print(f"\nthe jobs go on; mmsr1 slurm status {cfg.output} shows them", file=sys.stderr)


def _output(args: argparse.Namespace) -> Path:
    from megatron_mmsr1 import config

    return Path(args.config) if Path(args.config).is_dir() else Path(config.load(args.config, args.override).output)


def _find(args: argparse.Namespace) -> Submission:
    from megatron_mmsr1.cluster.slurm.submission import Submission

    return Submission.latest(_output(args))


def _status(args: argparse.Namespace) -> None:
    from megatron_mmsr1.cluster.slurm.submission import Submission
    from megatron_mmsr1.cluster.slurm.watching import status, unfinished

    *earlier, last = Submission.all(_output(args))
    for submission in [*unfinished(earlier), last]:
        print("\n".join(status(submission)))


def _logs(args: argparse.Namespace) -> None:
    from megatron_mmsr1.cluster.slurm.watching import logs

    print("\n".join(logs(_find(args), args.step, args.lines)))


def _cancel(args: argparse.Namespace) -> None:
    from megatron_mmsr1.cluster.slurm.submission import Submission
    from megatron_mmsr1.cluster.slurm.watching import cancel, unfinished

    *earlier, last = Submission.all(_output(args))
    gone = cancel(last)
    print(f"cancelled and gone: {', '.join(gone)}" if gone else "nothing to cancel: the jobs are over")
    if left := [job.id for s in unfinished(earlier) for job in s.jobs]:
        print(f"of earlier submissions there are still {', '.join(left)}: scancel {' '.join(left)}")
