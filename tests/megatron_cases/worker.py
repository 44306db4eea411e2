"""worker.py ROOT WORLD...: runs the cases of these world sizes, in order, and writes what became of them to
ROOT/results_<world>.json.

Every world has ranks of its own. To import megatron takes each of them longer than most cases, so that on a CPU they are forked
from this process, which has; CUDA does not survive a fork.
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import sys
import traceback
from multiprocessing import connection
from pathlib import Path


def run(root: Path, world: int) -> None:
    """One world's ranks. The others are killed when one dies, which they might wait for."""
    import torch

    from megatron_mmsr1.procs.ports import free_port

    context = multiprocessing.get_context("spawn") if torch.cuda.is_available() else multiprocessing.get_context("fork")
    port = free_port()
    ranks = [context.Process(target=serve, args=(root, world, rank, port)) for rank in range(world)]
    for rank in ranks:
        rank.start()
    waiting = set(ranks)
    while waiting:
        connection.wait([rank.sentinel for rank in waiting])
        ended = {rank for rank in waiting if rank.exitcode is not None}
        waiting -= ended
        if any(rank.exitcode for rank in ended):
            for rank in waiting:
                rank.kill()


def serve(root: Path, world: int, rank: int, port: int) -> None:
    """One rank, with what torchrun would tell it in its environment."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | {k: str(v) for k, v in places.items()}
    preload()
    import torch.distributed as dist

    from megatron_cases import cases
    from megatron_cases.harness import Lab

    lab = Lab(root, world, rank)
    results = {}
    left_out = set[str]() if os.environ.get("MMSR1_SLOW_CASES") == "1" else cases.SLOW.get(world, set())
    for name, case in cases.CASES[world].items():
        if name in left_out:
            continue
        problem = ""
        try:
            case(lab)
        except BaseException:
            problem = f"rank {rank}: {traceback.format_exc()}"
        everyone: list[str] = [problem] * world
        if world > 1 and dist.is_initialized():
            dist.all_gather_object(everyone, problem)
        results[name] = "\n".join(p for p in everyone if p)
        if rank == 0:
            print(f"{world} ranks: {name}: {results[name] or 'ok'}", flush=True)
            (root / f"results_{world}.json").write_text(json.dumps(results))
    sys.stdout.flush()
    os._exit(0)  # destroying gloo groups in any order may hang


def preload() -> None:
    import torch

    torch.set_num_threads(1)
    from megatron_mmsr1.megatron import platform

    platform.install()
    for name in ("megatron_mmsr1.megatron.actor", "megatron_cases.cases"):
        importlib.import_module(name)
    # Before each actor is made the last one is collected, and each collects once itself. Neither need look through half a
    # million objects that were imported here; but an actor must not be frozen, or it would never be collected.
    gc.collect()
    gc.freeze()
    gc.freeze = lambda: None


def main() -> None:
    import torch

    if not torch.cuda.is_available():
        preload()
    for world in sys.argv[2:]:
        run(Path(sys.argv[1]), int(world))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
