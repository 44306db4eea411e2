"""The collective that training lives on: an all-reduce over all tasks, right, and how fast."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from megatron_mmsr1.doctor.check import Check, Finding, Level, Place, Who
from megatron_mmsr1.doctor.tasks import Tasks
from megatron_mmsr1.errors import RunError

SIZES = {"nccl": (2**20, 2**25, 2**29), "gloo": (2**16, 2**20, 2**24)}  # bytes
TIMEOUT = timedelta(seconds=120)
ROUNDS, MOST_S = 20, 1.0  # of one size, whichever comes first
SLOW_GB_S = 5.0  # what a network of 40 Gb/s carries


def run(place: Place) -> list[Finding]:
    import torch

    tasks, devices = place.tasks, torch.cuda.device_count()
    if tasks.world == 1 and devices > 1:
        return over_processes(devices)
    if tasks.world == 1 and not devices:
        return [Finding("all-reduce", "not run: one process without a GPU; under srun it runs over all tasks")]
    return together(tasks)


def together(tasks: Tasks) -> list[Finding]:
    """Over the tasks, by NCCL where each has a GPU, else by gloo. The first task tells. Raises RuntimeError of torch."""
    import torch
    import torch.distributed as dist

    # A collective that hangs then raises; by default torch ends the process.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    devices = tasks.gather("allreduce/devices", torch.cuda.device_count())
    backend = "nccl" if all(devices) else "gloo"
    device = torch.device("cuda", tasks.local % devices[tasks.rank]) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    store = dist.PrefixStore("allreduce", tasks.store)
    dist.init_process_group(backend, store=store, rank=tasks.rank, world_size=tasks.world, timeout=TIMEOUT)
    try:
        seconds = {size: _measured(size, tasks, device) for size in SIZES[backend]}
        dist.barrier()
    finally:
        dist.destroy_process_group()
    if tasks.rank:
        return []
    nodes = [(tasks.nodes[r], devices[r]) for r in tasks.firsts]
    unused = [f"{name}: {n}" for name, n in nodes if n > tasks.nodes.count(name)]
    return [*_findings(backend, tasks, seconds), *([_left_out(unused)] if unused and backend == "nccl" else [])]


def _measured(size: int, tasks: Tasks, device: Any) -> float:
    """Seconds that one all-reduce of so many bytes takes, on the slowest task. RunError if it does not sum."""
    import torch
    import torch.distributed as dist

    def timed(rounds: int) -> float:
        dist.barrier()
        _synchronize(device)
        began = time.perf_counter()
        for _ in range(rounds):
            dist.all_reduce(x)
        _synchronize(device)
        took = torch.tensor([(time.perf_counter() - began) / rounds], dtype=torch.float64, device=device)
        dist.all_reduce(took, op=dist.ReduceOp.MAX)
        return float(took)

    x = torch.full((size // 4,), float(tasks.rank + 1), device=device)
    timed(1)
    wanted = tasks.world * (tasks.world + 1) / 2
    if not bool((x == wanted).all()):
        raise RunError(f"an all-reduce of {size} bytes over {tasks.world} tasks gave {float(x[0])}, not {wanted:g}")
    x.zero_()  # sums of sums would leave float32
    again = timed(1)  # the first one has opened the connections
    return timed(max(1, min(ROUNDS, int(MOST_S / again))))


def _synchronize(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _findings(backend: str, tasks: Tasks, seconds: dict[int, float]) -> list[Finding]:
    """Bus bandwidth as nccl-tests define it: bytes / time * 2 (n - 1) / n, what each link carries whatever n is."""
    n, found = tasks.world, []
    over = f"{backend}, {n} tasks on {len(tasks.firsts)} nodes"
    if n == 1:
        return [Finding("all-reduce", f"{backend} works; between one GPU and itself there is no bandwidth to measure")]
    for size, s in seconds.items():
        bus = size / s * 2 * (n - 1) / n / 1e9
        slow = backend == "nccl" and size == max(seconds) and bus < SLOW_GB_S
        advice = "NCCL may be on TCP: NCCL_DEBUG=INFO says which network it took" if slow else ""
        value = f"{bus:.3g} GB/s, {s * 1e3:.3g} ms ({over})"
        data = {"bytes": size, "seconds": s, "bus_gb_s": bus, "backend": backend, "tasks": n}
        found.append(Finding(f"{_said(size)}", value, Level.WARNING if slow else Level.OK, advice, data=data))
    return found


def _left_out(unused: list[str]) -> Finding:
    return Finding(
        "GPUs left out",
        f"nodes with more GPUs than tasks: {', '.join(unused)}",
        Level.WARNING,
        "start a task a GPU (srun --ntasks-per-node), or not all links are tried",
    )


def _said(size: int) -> str:
    return f"{size // 2**20} MiB" if size >= 2**20 else f"{size // 2**10} KiB"


def over_processes(count: int) -> list[Finding]:
    """This same check in so many processes of this machine: one for each of its GPUs."""
    from megatron_mmsr1.procs.ports import HOST, free_port
    from megatron_mmsr1.procs.service import Command, Service, wait_all

    ranks = ["--nproc-per-node", str(count), "--master-addr", HOST, "--master-port", str(free_port())]
    doctor = ["-m", "megatron_mmsr1.cli", "doctor", "--only", "allreduce", "--json"]
    with tempfile.TemporaryDirectory(prefix="mmsr1-doctor-") as directory:
        log = Path(directory) / "ranks.log"
        argv = [sys.executable, "-m", "megatron_mmsr1.procs.torchrun", *ranks, *doctor]
        env = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        failure = None
        with Service(Command(name="the all-reduce", argv=argv, log=log, env=env)).start() as service:
            try:
                wait_all([service])
            except RunError as e:  # also where it found errors
                failure = e
        found = read(log.read_text())
    if found is None:
        raise failure or RunError("the all-reduce over this machine's GPUs ended without a result")
    return found


def read(log: str) -> list[Finding] | None:
    """The findings that a doctor with --json has put among what else its processes say; None if it has not come so far."""
    for start in re.finditer(r"^\{", log, re.MULTILINE):
        try:
            said, _ = json.JSONDecoder().raw_decode(log, start.start())
        except ValueError:
            continue
        if "findings" in said:
            return [Finding.read(row) for row in said["findings"]]
    return None


CHECK = Check("an all-reduce over all tasks, and its bus bandwidth", Who.TASKS, run)
