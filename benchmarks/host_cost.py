"""What a step's rollouts cost the hosts beside the GPUs: memory and seconds a rank, from rollouts to micro-batches.

Two ways side by side, on real ranks over gloo. "everything, as lists": each token a Python number, every rank gets every
trajectory, the first rank writes all of them as JSON; that is how this project did it up to commit 0527c0e. "shares, as
buffers": 13 bytes a token, each rank gets what it trains on, each leader writes its own.

    python benchmarks/host_cost.py --trajectories 4096 --tokens 6000 --ranks 2
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
WAYS = ("everything, as lists", "shares, as buffers")
TURNS = 6


def make(n: int, tokens: int, rank: int) -> list[Any]:
    """A leader's trajectories: a prompt, then turns of the model and of a tool by turns."""
    from megatron_mmsr1.trajectory import Status, ToolCall, ToolStatus, Trajectory

    rng = random.Random(rank)
    ids = [rng.randrange(1000, 150_000) for _ in range(tokens)]
    probs = [-rng.random() for _ in range(tokens)]
    out = []
    for i in range(n):
        t = Trajectory(f"p{rank}-{i // 8}", f"0/{rank}-{i // 8}", i % 8, "what is it ?", ["a place"], status=Status.ANSWERED)
        cut = [tokens * k // TURNS for k in range(TURNS + 1)]
        for k, (a, b) in enumerate(pairwise(cut)):
            if k % 2:
                t.append("assistant", ids[a:b], "x" * 4 * (b - a), logprobs=probs[a:b], weight_versions=[7] * (b - a))
            else:
                call = ToolCall("text", "a query", ToolStatus.OK, 0.1, 5) if k else None
                t.append("tool" if k else "prompt", ids[a:b], "x" * 4 * (b - a), tool=call)
        t.reward, t.reward_parts = rng.random(), {"acc": 1.0, "format": 1.0}
        out.append(t)
    return out


class Peak:
    """The largest resident memory above that at the start, in MiB, sampled a hundred times a second."""

    def __init__(self) -> None:
        self.first = self.most = self._now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @staticmethod
    def _now() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    def _run(self) -> None:
        while not self._done.wait(0.01):
            self.most = max(self.most, self._now())

    def stop(self) -> float:
        self._done.set()
        self._thread.join()
        return max(self.most, self._now()) - self.first


def everything_as_lists(p: Any, local: list[dict[str, Any]], spec: Any, home: Path) -> dict[str, float]:
    import numpy as np
    import orjson
    import zstandard

    from megatron_mmsr1.data.shares import Size, plan

    started = time.perf_counter()
    every = p.gather_from_leaders(local)
    exchanged = time.perf_counter()
    if p.rank == 0:
        (home / "all.zst").write_bytes(zstandard.compress(b"\n".join(orjson.dumps(t) for t in every), level=3))
    dumped = time.perf_counter()
    for members in plan([Size(len(t["token_ids"])) for t in every], p.dp_size, spec["budget"], spec["hidden"])[p.dp_rank]:
        for m in members:
            np.asarray(every[m]["token_ids"], dtype=np.int64)
            np.asarray(every[m]["loss_mask"], dtype=np.float32)
            np.asarray(every[m]["logprobs"], dtype=np.float32)
    done = time.perf_counter()
    return {"exchange_s": exchanged - started, "dump_s": dumped - exchanged, "collate_s": done - dumped}


def shares_as_buffers(p: Any, local: list[Any], spec: Any, home: Path) -> dict[str, float]:
    import numpy as np

    from megatron_mmsr1.data.shares import Size, owners, plan
    from megatron_mmsr1.rollout.dump import write_dump

    started = time.perf_counter()
    outlines = p.gather_from_leaders([t.outline() for t in local])
    lengths = [Size(len(t)) for t in outlines]
    owner = owners(lengths, 1, p.dp_size, spec["budget"], spec["hidden"])
    count = len(outlines) // p.dp_size
    mine = p.distribute(local, [count] * p.dp_size, owner)
    exchanged = time.perf_counter()
    if p.is_leader:
        write_dump(home, 0, local, {}, part=p.dp_rank, parts=p.dp_size)
    dumped = time.perf_counter()
    places = [i for i, o in enumerate(owner) if o == p.dp_rank]
    held = dict(zip(places, mine, strict=True))
    for members in plan(lengths, p.dp_size, spec["budget"], spec["hidden"])[p.dp_rank]:
        for m in members:
            np.asarray(held[m].token_ids, dtype=np.int64)
            np.asarray(held[m].loss_mask, dtype=np.float32)
            np.asarray(held[m].logprobs)
    done = time.perf_counter()
    return {"exchange_s": exchanged - started, "dump_s": dumped - exchanged, "collate_s": done - dumped}


def rank_main(spec: dict[str, Any]) -> None:
    """One rank of one way; the first writes what all of them measured."""
    from megatron_mmsr1.megatron import platform

    platform.install()
    from megatron_mmsr1.config import parse
    from megatron_mmsr1.megatron import parallel

    world = int(os.environ["WORLD_SIZE"])
    p = parallel.init(parse({"model": {"path": "none"}, "train": {"ranks": world}, "megatron": spec["megatron"]}))
    home = Path(spec["home"])
    n = spec["trajectories"] // p.dp_size
    as_lists = spec["way"] == WAYS[0]
    gc.collect()
    peak = Peak()
    local: list[Any] = []
    if p.is_leader:
        local = make(n, spec["tokens"], p.dp_rank)
        if as_lists:  # each number an object of its own, as a parsed answer of an engine has them
            local = [json.loads(json.dumps(t.to_dict())) for t in local]
    p.barrier()
    took = (everything_as_lists if as_lists else shares_as_buffers)(p, local, spec, home)
    row = {"rank": p.rank, "leader": p.is_leader, "peak_mib": peak.stop(), **took, "step_s": sum(took.values())}
    (home / f"rank{p.rank}.json").write_text(json.dumps(row))
    p.barrier()


def measure(args: argparse.Namespace, way: str) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as home:
        spec = vars(args) | {"way": way, "home": home, "budget": 16384, "hidden": 3584}
        spec["megatron"] = {"tensor_parallel": args.tensor_parallel}
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={args.ranks}", "--master-port=29781"]
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        subprocess.run([*command, __file__, "--rank", json.dumps(spec)], check=True, env=env)
        return [json.loads(f.read_text()) for f in sorted(Path(home).glob("rank*.json"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "host_cost.json")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        rank_main(json.loads(args.rank))
        return
    from record import record

    args.out, out = str(args.out), args.out
    rows = {way: measure(args, way) for way in WAYS}
    ratios = {
        name: max(r[name] for r in rows[WAYS[0]]) / max(r[name] for r in rows[WAYS[1]]) for name in ("peak_mib", "step_s")
    }
    for way, ranks in rows.items():
        for r in ranks:
            print(f"{way:24} rank {r['rank']}: peak {r['peak_mib']:8.0f} MiB, step {r['step_s']:6.1f} s ({r['exchange_s']:.1f} "
                  f"exchange, {r['dump_s']:.1f} dump, {r['collate_s']:.1f} collate)")  # fmt: skip
    print(f"the fullest rank: {ratios['peak_mib']:.1f}x less memory, {ratios['step_s']:.1f}x less time")
    settings = {k: v for k, v in vars(args).items() if k not in ("rank", "out")}
    record(out, [{"way": way} | settings | r for way, ranks in rows.items() for r in ranks] + [{"way": "ratio"} | ratios])


if __name__ == "__main__":
    main()
