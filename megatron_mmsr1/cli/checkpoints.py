"""`mmsr1 checkpoints <verb>`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from megatron_mmsr1.cli.parts import Verbs, existing, group, verb
from megatron_mmsr1.errors import RunError, UsageError


def add(verbs: Verbs[argparse.ArgumentParser]) -> None:
    checkpoints = group(verbs, "checkpoints", "look after a run's checkpoints", also="checkpoint")
    p = verb(
        checkpoints,
        "list",
        _list,
        "show a run's checkpoints: layout, size, age, rewards, whether all files are there, and which one it resumes from",
        "mmsr1 checkpoints list runs/atlas",
    )
    p.add_argument("source", metavar="RUN", help="a run's directory")
    p.add_argument("--verify", action="store_true", help="read every file and compare its checksum too")
    p.add_argument("--json", action="store_true", help="print one JSON object a line, with plain numbers")
    p = verb(
        checkpoints,
        "verify",
        _verify,
        "read every file of a run's checkpoints and compare it with its checksum",
        "mmsr1 checkpoints verify runs/atlas",
    )
    p.add_argument("source", metavar="RUN_OR_DIR", help="a run, one of its checkpoints, or an exported model")
    p.add_argument("--json", action="store_true", help="print one JSON object a directory")
    p = verb(
        checkpoints,
        "export",
        _export,
        "write a checkpoint as a Hugging Face one, as mmsr1 export does",
        "mmsr1 checkpoints export runs/atlas/checkpoints/step_000050 my-model",
    )
    p.add_argument("source", metavar="CHECKPOINT", help="a checkpoint's directory, or a run (its latest)")
    p.add_argument("out", metavar="OUT", help="directory to write")


def _list(args: argparse.Namespace) -> None:
    run = existing(args.source)
    from megatron_mmsr1.run.saved import listed

    rows = [*listed(run, contents=args.verify)]
    if not rows:
        raise UsageError(f"{run} has no checkpoint")
    if args.json:
        for row in rows:
            _line(row)
        return
    print(f"{'':11}  {'layout':18}{'GB':>8}{'hours':>8}{'evaluated':>11}{'reward':>8}  files")
    for r in rows:
        numbers = f"{r['bytes'] / 1e9:8.2f}{r['hours']:8.1f}{_number(r['eval/reward']):>11}{_number(r['reward/mean']):>8}"
        files = r["fault"] or ("checksums right" if r["verified"] else "all there")
        print(f"{r['name']:11}  {r['layout']:18}{numbers}  {files}{', the latest' * r['latest']}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _verify(args: argparse.Namespace) -> None:
    from megatron_mmsr1.checkpoints.check import Checked, advice, check, to_check

    found: list[Checked] = []
    for c in check(to_check(existing(args.source))):
        found.append(c)
        if args.json:
            _line(
                {"directory": str(c.directory), "whole": not c.faults, "files": c.files, "bytes": c.bytes, "faults": c.faults}
            )
            continue
        if not c.faults:
            print(f"{c.directory}  whole: {c.files} files, {c.bytes / 1e6:,.1f} MB", flush=True)
        for fault in c.faults:
            print(f"{c.directory}  BROKEN: {fault}", flush=True)
    said = advice(found)
    broken = [c.directory.name for c in found if c.faults]
    if broken:
        raise RunError(f"{len(broken)} of {len(found)} broken ({', '.join(broken)}); {said}")
    print(said or "whole", file=sys.stderr if args.json else sys.stdout)


def _line(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


def _export(args: argparse.Namespace) -> None:
    from megatron_mmsr1.run.export import export

    source = existing(args.source)
    print(f"exporting {source} to {args.out} ...", file=sys.stderr, flush=True)
    export(source, Path(args.out))
