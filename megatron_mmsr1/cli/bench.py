"""`mmsr1 bench`: what a machine does with this code, measured. The benchmarks are part of a checkout, not of the package."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from megatron_mmsr1.cli.parts import Verbs, group, verb
from megatron_mmsr1.errors import UsageError

ROOT = Path(__file__).parents[2]


def add(verbs: Verbs[argparse.ArgumentParser]) -> None:
    bench = group(verbs, "bench", "measure this machine")
    p = verb(bench, "gpu", _gpu, "check and measure the trainer on a GPU (docs/gpu.md)", "mmsr1 bench gpu --part mfu")
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    p.add_argument("--tiny", action="store_true", help="models of two layers and short packs: does it all run?")
    p.add_argument("--part", action="append", default=[], metavar="NAME", help="only this part; may be repeated")
    p.add_argument(
        "--out", help="directory of the results (default: benchmarks/results/gpu; tiny or on the CPU: build/gpu-check)"
    )
    p.add_argument("--budget", type=float, default=520, metavar="SECONDS", help="for everything (default: %(default)s)")
    p.add_argument("--commit", help="what this tree is a copy of, where git cannot tell")


def _gpu(args: argparse.Namespace) -> None:
    if not (ROOT / "benchmarks" / "gpu").is_dir():
        raise UsageError("mmsr1 bench runs from a checkout of the source: an installed package does not hold the benchmarks")
    default = ROOT / "build" / "gpu-check" if args.tiny or args.device == "cpu" else ROOT / "benchmarks" / "results" / "gpu"
    out = Path(args.out).absolute() if args.out else default
    options = {"device": args.device, "tiny": args.tiny, "out": str(out), "budget_s": args.budget}
    options |= {"only": args.part, "commit": args.commit}
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    command = [sys.executable, "-m", "benchmarks.gpu", json.dumps(options)]
    code = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=False).returncode
    if code:
        sys.exit(code)
