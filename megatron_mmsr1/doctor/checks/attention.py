"""Which attention the trainer of this config uses on this machine: built as the model builds it, and run on a few tokens."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from megatron_mmsr1.config import dump
from megatron_mmsr1.doctor.check import Check, Finding, Level, Place, Who
from megatron_mmsr1.doctor.tasks import PLACE
from megatron_mmsr1.errors import RunError

TIMEOUT_S = 600.0  # megatron's imports alone may take a minute from a slow disk
# Rounding of the inputs' type, times what a sum over a few dozen values may add.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


def run(place: Place) -> list[Finding]:
    """In a process of its own: a kernel that fails may leave the device unusable, and megatron changes torch on the CPU."""
    if place.cfg is None:
        return []
    with tempfile.TemporaryDirectory(prefix="mmsr1-doctor-") as directory:
        config = Path(directory) / "config.yaml"
        config.write_text(dump(place.cfg))
        env = {k: v for k, v in os.environ.items() if k not in PLACE}
        argv = [sys.executable, "-m", "megatron_mmsr1.megatron.attention.probe", str(config)]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RunError(f"the model's attention does not run here: {said[-1]}")
    return findings(json.loads(done.stdout.splitlines()[-1]))


def findings(said: dict[str, Any]) -> list[Finding]:
    """Of what the probe printed."""
    kernels = (
        f"{said['layer']} by {', '.join(said['kernels']) or 'kernels without a name'}, {said['dtype']} on {said['device']}"
    )
    errors = {k: said[k] for k in ("error", "gradient_error")}
    right = all(e <= TOLERANCE[said["dtype"]] for e in errors.values())
    off = f"output {said['error']:.1g}, gradients {said['gradient_error']:.1g} from a softmax in float32"
    data = {k: None if math.isnan(e) else e for k, e in errors.items()}  # JSON has no NaN
    advice = "" if right else "this kernel computes something else: install another build of it"
    slow = "another kernel would do once it has what it lacks here: bfloat16, say, or the package" if said["slow"] else ""
    return [
        Finding("kernel", said["choice"], Level.WARNING if slow else Level.OK, slow, alike=True),
        Finding("trainer", kernels, alike=True, data={k: v for k, v in said.items() if k not in errors}),
        Finding("difference", off, Level.OK if right else Level.ERROR, advice, data=data),
    ]


CHECK = Check("the trainer's attention, run once and compared", Who.NODES, run)
