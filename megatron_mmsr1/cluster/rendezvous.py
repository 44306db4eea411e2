"""How a rank learns its place: from torchrun, or from srun, which is translated to torchrun's words once."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from megatron_mmsr1.cluster.nodes import address, of_names
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.procs.ports import PORTS


def adopt(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from what srun says, where nothing else has. Returns
    whether it did.

    The master is the step's first node; its port, the same on every rank, follows from the numbers of job and step and lies
    below the range of client ports. MASTER_ADDR and MASTER_PORT that are set already are kept.
    """
    if "RANK" in environ or "SLURM_STEP_NUM_TASKS" not in environ:
        return False
    try:
        rank, world, local = (environ[k] for k in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"))
        job, step = int(environ["SLURM_JOB_ID"]), int(environ.get("SLURM_STEP_ID", "0"))
        first = of_names(environ["SLURM_STEP_NODELIST"])[0]
    except KeyError as e:
        raise UsageError(
            f"srun started this rank but {e} is not set: start the ranks by srun, torchrun or mmsr1 train"
        ) from None
    if int(world) == 1:
        return False  # a job of one needs no rendezvous
    environ.update({"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": local})
    listen_at(address(os.environ.get("SLURMD_NODENAME", first)), environ)
    environ.setdefault("MASTER_ADDR", address(first))
    environ.setdefault("MASTER_PORT", str(PORTS.start + (job * 31 + step) % len(PORTS)))
    return True


def interface_of(own: str) -> str | None:
    """The network interface that has this IPv4 address; None if none has."""
    import psutil

    for name, found in psutil.net_if_addrs().items():
        if any(a.family == socket.AF_INET and a.address == own for a in found):
            return name
    return None


def listen_at(own: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """gloo listens on the interface of this address, unless the person says where (GLOO_SOCKET_IFNAME). NCCL is left alone."""
    if "GLOO_SOCKET_IFNAME" not in environ and (name := interface_of(own)):
        environ["GLOO_SOCKET_IFNAME"] = name
