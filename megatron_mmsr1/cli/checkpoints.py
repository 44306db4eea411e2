"""`mmsr1 checkpoints <verb>`."""

from __future__ import annotations

import argparse

from megatron_mmsr1.cli.parts import Verbs, existing, group, verb
from megatron_mmsr1.errors import RunError


def add(verbs: Verbs[argparse.ArgumentParser]) -> None:
    checkpoints = group(verbs, "checkpoints", "look after a run's checkpoints")
    p = verb(
        checkpoints,
        "verify",
        _verify,
        "read every file of a run's checkpoints and compare it with its checksum",
        "mmsr1 checkpoints verify runs/atlas",
    )
    p.add_argument("source", metavar="RUN_OR_DIR", help="a run, one of its checkpoints, or an exported model")


def _verify(args: argparse.Namespace) -> None:
    from megatron_mmsr1.checkpoints.check import Checked, advice, check, to_check

    found: list[Checked] = []
    for c in check(to_check(existing(args.source))):
        found.append(c)
        if not c.faults:
            print(f"{c.directory}  whole: {c.files} files, {c.bytes / 1e6:,.1f} MB", flush=True)
        for fault in c.faults:
            print(f"{c.directory}  BROKEN: {fault}", flush=True)
    said = advice(found)
    broken = [c.directory.name for c in found if c.faults]
    if broken:
        raise RunError(f"{len(broken)} of {len(found)} broken ({', '.join(broken)}); {said}")
    print(said or "whole")
