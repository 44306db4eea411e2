"""`mmsr1 data <verb>`."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_mmsr1.cli.parts import Verbs, existing, group, verb


def add(verbs: Verbs[argparse.ArgumentParser]) -> None:
    data = group(verbs, "data", "work on the questions that runs train on")
    p = verb(
        data,
        "difficulty",
        _difficulty,
        "add a column to a run's data: the share of each question's rollouts that failed",
        "mmsr1 data difficulty runs/atlas data/graded",
    )
    p.add_argument("source", metavar="RUN", help="a run whose rollouts were kept")
    p.add_argument("out", metavar="OUT", help="directory for the copies of its files (shaping.curriculum.column=difficulty)")


def _difficulty(args: argparse.Namespace) -> None:
    from megatron_mmsr1.run.difficulty import write_difficulties

    for line in write_difficulties(existing(args.source), Path(args.out)):
        print(line)
