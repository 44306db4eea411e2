"""torchrun worker.py ROOT [CASE...]: runs this world size's cases in order and writes what became of them to
ROOT/results_<world>.json."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import torch

    torch.set_num_threads(1)
    from megatron_mmsr1.megatron import platform

    platform.install()
    import torch.distributed as dist

    from megatron_cases import cases
    from megatron_cases.harness import Lab

    root, world, rank = Path(sys.argv[1]), int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    lab = Lab(root, world, rank)
    results = {}
    only = sys.argv[2:]
    for name, case in cases.CASES[world].items():
        if only and name not in only:
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
            print(f"{name}: {results[name] or 'ok'}", flush=True)
            (root / f"results_{world}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
    os._exit(0)  # destroying gloo groups in any order may hang
