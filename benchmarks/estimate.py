"""`python benchmarks/estimate.py [--out FILE]`: what `mmsr1 estimate` says of memory and time against real CPU ranks (gloo),
in several layouts of one small model. Memory: every storage of a tensor (`allocations.py`). Time: CPU seconds of a rank's
train step, which other processes of the machine change least, against a roofline of rates that the same ranks measure beside
it."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

TEXT = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
}
LENGTH, EACH, ROLLOUTS, CHUNK = 512, 4, 12, 512
TP2 = {"tensor_parallel": 2, "sequence_parallel": True}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP1": (1, {}),
    "TP1, recompute full": (1, {"recompute": "full"}),
    "TP2+SP": (2, TP2),
    "PP2": (2, {"pipeline_parallel": 2}),
    "DP2": (2, {}),
    "TP2xPP2+SP": (4, TP2 | {"pipeline_parallel": 2}),
    "TP1, LoRA": (1, {}),
    "TP2+SP, LoRA": (2, TP2),
    "TP2xPP2+SP, recompute full": (4, TP2 | {"pipeline_parallel": 2, "recompute": "full"}),
}


def main() -> None:
    from record import record

    from benchmarks.gpu import actor as actors
    from benchmarks.gpu import shapes

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "estimate.json")
    parser.add_argument("--only", action="append", choices=LAYOUTS, default=[])
    parser.add_argument(
        "--seconds", action="store_true", help="also the CPU seconds of a step, on a machine that does nothing else"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    actors.prepare()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as home:
        shapes.write("qwen2_5_vl_3b", Path(home), tiny=True, text=TEXT)
        for name in args.only or LAYOUTS:
            rows += measured(Path(home), name, args.dtype, args.seconds)
            record(args.out, rows)


def measured(home: Path, name: str, dtype: str, timed: bool) -> list[dict[str, Any]]:
    """A row a pipeline stage, of its fullest rank: ranks are forked from this process, which has imported megatron."""
    from megatron_mmsr1.procs.ports import free_port

    world, _ = LAYOUTS[name]
    port = free_port()
    context: Any = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(home, name, dtype, r, world, port, timed)) for r in range(world)]
    for r in ranks:
        r.start()
    for r in ranks:
        r.join()
        if r.exitcode:
            sys.exit(f"{name}: a rank ended with {r.exitcode}")
    found = [json.loads((home / f"rank_{r}.json").read_text()) for r in range(world)]
    stages = sorted({f["stage"] for f in found})
    out = [max((f for f in found if f["stage"] == i), key=lambda f: f["memory"]["train"]["measured"]) for i in stages]
    for row in out:
        print(json.dumps(row), flush=True)
    return out


def config_of(home: Path, name: str, dtype: str) -> Any:
    from megatron_mmsr1.config import parse

    world, megatron = LAYOUTS[name]
    return parse(
        {
            "model": {"path": str(home), "dtype": dtype, "lora": {"rank": 16, "alpha": 16} if "LoRA" in name else None},
            "data": {"prompts_per_step": ROLLOUTS, "group_size": 2},
            "protocol": {"max_prompt_tokens": 1, "max_turn_tokens": 1},
            "megatron": {"tokens_per_microbatch": EACH * LENGTH, "logprob_chunk": CHUNK} | megatron,
            "algorithm": {"kl_coef": 0.0},
            "train": {"ranks": world},
        }
    )


def _rank(home: Path, name: str, dtype: str, rank: int, world: int, port: int, timed: bool) -> None:
    import torch

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    from benchmarks.gpu import actor as actors

    cfg = config_of(home, name, dtype)
    rollouts = actors.rollouts([LENGTH] * ROLLOUTS, 600)
    weights = actors.advantages(len(rollouts))
    actor, memory = of_a_step(cfg, rollouts, weights)
    from megatron_mmsr1.estimate import dimensions
    from megatron_mmsr1.estimate.batch import Work
    from megatron_mmsr1.estimate.memory import ranks
    from megatron_mmsr1.estimate.parameters import layout
    from megatron_mmsr1.estimate.step import Rates, step
    from megatron_mmsr1.models import of_checkpoint

    d = dimensions.of_files(of_checkpoint(home))
    at = layout(cfg, d)
    mine = ROLLOUTS // cfg.data_parallel
    each = min(EACH, mine)
    count = -(-mine // each)
    work = Work(count, each * LENGTH, each * LENGTH // 2, 0, 0, LENGTH, 0, 1)
    stage = actor.parallel.pp_rank
    told = ranks(cfg, d, at, work, "cpu")[stage]
    estimated = {p.name: p for p in told.phases}
    row: dict[str, Any] = {"layout": name, "dtype": dtype, "stage": stage, "rank": rank, "memory": {}}
    always = {k: v for k, v in told.phases[0].terms.items() if k in ("weights", "gradients", "optimizer")}
    row["memory"]["held"] = _compared(sum(always.values()), memory["held"])
    for phase, said in estimated.items():
        row["memory"][phase] = _compared(said.total, memory[phase]) | {"terms": {k: v for k, v in said.terms.items() if v}}
    if timed:
        before = rates(dtype)
        seconds = min(_cpu_seconds(actor, rollouts, weights) for _ in range(2))
        after = rates(dtype)
        flops, bandwidth = ((a + b) / 2 for a, b in zip(before, after, strict=True))
        terms = step(cfg, d, at, work, Rates(flops, bandwidth, bandwidth / 4, bandwidth / 4), "cpu")
        terms.pop("bubble")  # waiting takes no CPU seconds
        row["cpu_seconds"] = {"estimated": sum(terms.values()), "measured": seconds, "terms": terms}
        row["rates"] = {"flops": flops, "bandwidth": bandwidth, "apart": abs(before[0] / after[0] - 1)}
    (home / f"rank_{rank}.json").write_text(json.dumps(row))


def of_a_step(cfg: Any, rollouts: Any, weights: Any) -> tuple[Any, dict[str, int]]:
    """An actor with random weights, and the most bytes it held in its second train step by phase of `mmsr1 estimate`."""
    import gc

    from benchmarks.allocations import Allocations
    from megatron_mmsr1.data.images import ImageStore
    from megatron_mmsr1.megatron.actor import MegatronActor

    with Allocations() as found:
        actor = MegatronActor(cfg, ImageStore(None), total_steps=10, random_weights=True)
        gc.unfreeze()
        gc.collect()
        held, update = found.held, actor.optimizer.step

        def step() -> Any:
            with found.during("update"):
                return update()

        actor.optimizer.step = step
        actor.train_step(rollouts, weights)
        found.most.clear()
        with found.during("train"):
            actor.train_step(rollouts, weights)
        actor.optimizer.step = update
    return actor, found.most | {"held": held}


def rates(dtype: str) -> tuple[float, float]:
    """(operations a CPU second of a product of a layer's sizes, bytes a CPU second of sums of what no cache holds)."""
    import torch

    x, w = torch.randn(EACH * LENGTH, 256, dtype=getattr(torch, dtype)), torch.randn(256, 1408, dtype=getattr(torch, dtype))
    done, started = 0, time.process_time()
    while time.process_time() - started < 0.5:
        torch.matmul(x, w)
        done += 1
    flops = 2 * x.shape[0] * 256 * 1408 * done / (time.process_time() - started)
    a, b, c = (torch.ones(EACH * LENGTH, 1408) for _ in range(3))
    done, started = 0, time.process_time()
    while time.process_time() - started < 0.5:
        torch.add(a, b, out=c)
        done += 1
    return flops, 3 * a.nbytes * done / (time.process_time() - started)


def _cpu_seconds(actor: Any, rollouts: Any, weights: Any) -> float:
    started = time.process_time()
    actor.train_step(rollouts, weights)
    return time.process_time() - started


def _compared(estimated: int, measured: int) -> dict[str, Any]:
    return {"estimated": estimated, "measured": measured, "error": estimated / measured - 1}


if __name__ == "__main__":
    main()
