"""`mmsr1 report` and `mmsr1 watch`: a run as a page, once or while it goes on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_mmsr1.cli.parts import Verbs, existing, port, verb


def add(verbs: Verbs[argparse.ArgumentParser]) -> None:
    p = verb(
        verbs,
        "report",
        _report,
        "write the report of a run, or of several beside each other, as one HTML file",
        "mmsr1 report runs/atlas",
    )
    p.add_argument("runs", metavar="RUN", nargs="+", help="a run's output directory")
    p.add_argument("--out", metavar="FILE", help="default: RUN/report.html; of several, compare.html in the first")
    p.add_argument(
        "--seeds", action="store_true", help="the runs differ in their seed only: curves of their mean, with its spread"
    )

    p = verb(
        verbs,
        "watch",
        _watch,
        "show a run's report in a browser while the run goes on",
        "mmsr1 watch runs/atlas --port 8200",
    )
    p.add_argument("runs", metavar="RUN", nargs="+", help="a run's output directory")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine alone")
    p.add_argument("--port", type=port, default=8200, help="0: any free one; default: 8200")


def _report(args: argparse.Namespace) -> None:
    from megatron_mmsr1.report import report

    args.output = args.runs[0]
    runs = [existing(r) for r in args.runs]
    print(report(runs, Path(args.out) if args.out else None, seeds=args.seeds))


def _watch(args: argparse.Namespace) -> None:
    from megatron_mmsr1.report.watch import server

    with server([existing(r) for r in args.runs], args.host, args.port) as s:
        print(f"watching at {s.url} until Ctrl-C", file=sys.stderr, flush=True)
        s.serve_forever()
