"""The nodes of this job: Slurm's, or this machine alone."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_mmsr1.errors import RunError

LOOPBACK = "127.0.0.1"
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Node:
    """`address`: where others of the job reach it. `gpus`: how many it has for this job."""

    name: str
    address: str
    gpus: int = 0


def of_job(environ: Mapping[str, str] = os.environ) -> list[Node]:
    """Slurm's nodes in their order, else this machine. Raises RunError where Slurm does not answer."""
    names = environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST")
    if not names:
        return [Node(socket.gethostname(), LOOPBACK, local_gpus(environ))]
    gpus = slurm_gpus(environ)
    return [Node(n, address(n), gpus) for n in _scontrol("show", "hostnames", names).split()]


def address(name: str) -> str:
    """By resolution, else what Slurm itself uses to reach the node: names of nodes need not resolve."""
    try:
        return socket.gethostbyname(name)
    except OSError:
        found = re.search(r"\bNodeAddr=(\S+)", _scontrol("show", "node", "-o", name))
        if found is None:
            raise RunError(f"node {name} has no address: its name does not resolve and Slurm knows none") from None
        return found[1] if found[1] != name else LOOPBACK


def slurm_gpus(environ: Mapping[str, str]) -> int:
    """GPUs that Slurm gave this job on each of its nodes; 0 if it gave none."""
    for key in ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE"):
        if found := re.search(r"(\d+)$", environ.get(key, "")):
            return int(found[1])
    return 0


def local_gpus(environ: Mapping[str, str] = os.environ) -> int:
    """GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, else the driver's. torch is not imported."""
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return len([d for d in named.split(",") if d.strip() and d.strip() != "-1"])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _scontrol(*args: str) -> str:
    if shutil.which("scontrol") is None:
        raise RunError(
            "this is a Slurm job (SLURM_JOB_NODELIST is set), but scontrol is not on PATH: mount it into the container"
        )
    try:
        done = subprocess.run(["scontrol", *args], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as e:
        raise RunError(f"scontrol {' '.join(args)} failed: {getattr(e, 'stderr', '') or e}") from None
    return done.stdout
