"""Train steps whose packs hold what a group begins with once (megatron/attention/prefix.py), against whole rollouts: tokens,
operations, seconds, peak memory; loss and gradient norm must agree.

Groups of 8 with the lengths of MMSearch-R1's rollouts on FVQA: a prompt of about 500 tokens of text and 500 of a picture (here
text too, so that nothing but the language model is measured), then answers of 100 to 300 tokens, or, "searched", half of them
with an observation of 700 more.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import actor as actors
from benchmarks.gpu import flops, shapes
from benchmarks.gpu.job import Job
from megatron_mmsr1.trajectory import Trajectory

SHAPE = "qwen2_5_vl_3b"
GROUP, STEPS = 8, 3  # the first step is not measured
RATE = 1e-30  # of learning: no weight of these dtypes moves
# |a - b| / |b| of the loss's gradient norm: sums run in other orders (parity.py).
ALLOWED = {"float32": 1e-4, "bfloat16": 0.02}


def run(job: Job) -> None:
    actors.prepare()
    from megatron_mmsr1.megatron.layers import local_block

    dtype = "float32" if job.device == "cpu" else "bfloat16"
    with tempfile.TemporaryDirectory() as home:
        config = shapes.write(SHAPE, Path(home), tiny=job.tiny)
        prompt, scale = (80, 0.05) if job.tiny else (1000, 1.0)
        own, once = {"transformer_layer_spec": local_block}, {"share_prefixes": True}  # whose kernel takes both ways
        actor = actors.make(Path(home), tokens=16384, dtype=dtype, random_weights=True, provider=own, megatron=once, rate=RATE)
        for whole, once, ratios in cases(actor, config, prompt, scale):
            for row in (whole, once, ratios):
                job.row(dtype=dtype, **row)
            if not ratios["apart"] <= ALLOWED[dtype]:
                name, apart = ratios["rollouts"], ratios["apart"]
                job.fault(f"{name}: the gradient norms are {apart:.1e} apart, allowed {ALLOWED[dtype]:.0e}")


def cases(actor: Any, config: dict[str, Any], prompt: int, scale: float) -> Iterator[list[dict[str, Any]]]:
    """Of rollouts that answer at once and of those that searched: the rows of `compare`, and one of their ratios with what is
    between their gradient norms, as a share."""
    for name, observed in (("answers", 0), ("searched", 700)):
        groups = rollouts(2, prompt, scale, observed, shapes.ordinary_ids(config))
        whole, once = compare(actor, groups, config["text_config"], STEPS)
        ratios = {k: whole[k] / once[k] for k in ("tokens", "operations", "seconds")}
        apart = abs(once["grad_norm"] - whole["grad_norm"]) / whole["grad_norm"]
        yield [{"rollouts": name, **row} for row in (whole, once, {"way": "ratio", **ratios, "apart": apart})]


def rollouts(groups: int, prompt: int, scale: float, observed: int, words: int, *, seed: int = 0) -> list[Trajectory]:
    """Groups of GROUP over random ids; every second one has an observation of `observed` tokens before its answer."""
    rng = random.Random(seed)

    def ids(n: float) -> list[int]:
        return [rng.randrange(words) for _ in range(max(1, round(n)))]

    out: list[Trajectory] = []
    for g in range(groups):
        first = ids(prompt)
        for i in range(GROUP):
            t = Trajectory(f"p{g}", f"g{g}", i, "q", ["a"])
            t.append("prompt", first, "")
            if observed and i % 2:
                _say(t, ids(60 * scale))
                t.append("tool", ids(observed * scale), "")
            _say(t, ids(rng.uniform(100, 300) * scale))
            out.append(t)
    return out


def _say(t: Trajectory, ids: list[int]) -> None:
    t.append("assistant", ids, "", logprobs=[-1.0] * len(ids), weight_versions=[0] * len(ids))


def compare(actor: Any, groups: Sequence[Trajectory], text: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """A row for whole rollouts and one for shared beginnings, from steps of both in turn. At RATE all see the same weights."""
    import torch

    weights = actors.advantages(len(groups))
    specs = {way: dataclasses.replace(actor.packing, shared=way == "once") for way in ("whole", "once")}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in specs}
    for _ in range(steps):
        for way, spec in specs.items():
            actor.packing = spec
            torch.cuda.reset_peak_memory_stats()
            found[way].append(actor.train_step(groups, weights))
    rows: list[dict[str, Any]] = []
    for way, reports in found.items():
        last, first = reports[-1], reports[0]
        rows.append(
            {
                "way": way,
                "tokens": last["tokens_computed"],
                "operations": operations(groups, text, shared=way == "once"),
                "seconds": statistics.median(r["train_seconds"] for r in reports[1:]),
                "peak_memory_gib": last["peak_memory_gib"],
                "loss": first["loss"],
                "grad_norm": first["grad_norm"],
            }
        )
    return rows


def operations(groups: Sequence[Trajectory], text: dict[str, Any], *, shared: bool) -> float:
    """Of a train step (`flops.train_step`). A shared prompt is a sequence once; what follows it in a rollout attends to it: the
    pairs of tokens that the rollout has and the prompt has not."""
    scored = sum(t.sampled_tokens for t in groups)
    whole = flops.train_step(text, [len(t) for t in groups], scored)
    if not shared:
        return whole
    prompts = {t.group_id: t.turns[0].end for t in groups}
    again = [prompts[t.group_id] for t in groups]
    return whole - flops.train_step(text, again, 0) + flops.train_step(text, list(prompts.values()), 0)
