"""The nodes of this job: Slurm's, those that a person names, or this machine alone."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_mmsr1.errors import RunError, UsageError

NAMED = "MMSR1_NODES"  # environment, where there is no Slurm: NAME=ADDRESS=GPUS,NAME=ADDRESS=GPUS
LOOPBACK = "127.0.0.1"
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Node:
    """`address`: where others of the job reach it. `gpus`: how many it has for this job."""

    name: str
    address: str
    gpus: int = 0


def of_job(environ: Mapping[str, str] = os.environ) -> list[Node]:
    """In their order: those of `MMSR1_NODES`, else Slurm's, else this machine. Raises RunError where Slurm does not answer,
    UsageError for a list that cannot be read."""
    if said := environ.get(NAMED):
        return [_named(entry) for entry in said.split(",")]
    names = environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST")
    if not names:
        return [Node(socket.gethostname(), LOOPBACK, local_gpus(environ))]
    gpus = slurm_gpus(environ)
    return [Node(n, address(n), gpus) for n in of_names(names)]


def _named(entry: str) -> Node:
    name, *rest = entry.strip().split("=")
    if not name or len(rest) != 2 or not rest[1].isdigit():
        raise UsageError(f"{NAMED}: {entry!r} must be NAME=ADDRESS=GPUS")
    return Node(name, rest[0], int(rest[1]))


def own_address(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """Of this node, whose name in the job this is; loopback outside any job."""
    if NAMED in environ:
        return next((n.address for n in of_job(environ) if n.name == name), LOOPBACK)
    return address(name) if "SLURM_JOB_ID" in environ else LOOPBACK


def of_names(listed: str) -> list[str]:
    """Slurm's compact list of nodes (n[1-3]) name by name. Raises RunError where Slurm does not answer."""
    return _scontrol("show", "hostnames", listed).split()


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
