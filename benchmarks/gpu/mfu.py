"""Train steps of Qwen2-VL-2B's and Qwen2.5-VL-3B's shapes, random weights, packs of 8k and 16k tokens of text: seconds, model
FLOPs utilisation (flops.py) and peak memory, for every attention that is there and every way of recompute.

A step is `MegatronActor.train_step`: packing, forward, GRPO loss, backward and optimizer, one micro-batch. The vision tower is
there, frozen, and sees no picture.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu import actor as actors
from benchmarks.gpu import flops, shapes
from benchmarks.gpu.job import Job
from megatron_mmsr1.errors import UsageError

# Lengths as of a search conversation's rollouts: 8,192 and 16,384 tokens.
PACKS = {"8k": [1024, 1536, 2048, 3584], "16k": [1024, 1536, 2048, 2560, 4096, 5120]}
TINY_PACKS = {"8k": [16, 24, 24], "16k": [16, 24, 40, 48]}
RECOMPUTE = ("none", "selective", "full", "full offloaded")
# megatron-core's switches that a dense model without transformer-engine could have on.
FUSIONS = (
    "bias_activation_fusion",
    "bias_dropout_fusion",
    "gradient_accumulation_fusion",
    "persist_layer_norm",
    "apply_rope_fusion",
)
# Of the gradient norm, FP8's against bfloat16's: three bits of a number's digits instead of eight.
ALLOWED_FP8 = 0.1
STEPS = 2  # that are measured, after one that is not
CASE_S = 8  # a case is not begun with less time than this left

Around = Callable[[], contextlib.AbstractContextManager[Any]]


def attentions(*, cuda: bool) -> dict[str, tuple[str, Around]]:
    """Name -> kernel of ours, and what to enter around a step. `padded` asks torch, which chooses unless told what to use."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from megatron_mmsr1.megatron.attention.choice import KERNELS, situation

    here = situation()
    ours: dict[str, tuple[str, Around]] = {
        n: (n, contextlib.nullcontext) for n, k in KERNELS.items() if k.attend is not None and not k.lacks(here)
    }
    backends = [SDPBackend.EFFICIENT_ATTENTION] if cuda else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    for b in backends:
        ours[f"padded-{b.name.lower().removesuffix('_attention')}"] = ("padded", lambda b=b: sdpa_kernel([b]))
    return ours


def run(job: Job) -> None:
    actors.prepare()
    from megatron_mmsr1.megatron.bridge import has_transformer_engine

    ways = ["local"]
    if has_transformer_engine():
        ways = ["transformer-engine", "fp8", "local"]
    else:
        job.skipped("transformer-engine's layers and FP8: it is not installed")
    work = [(name, way) for name in shapes.NAMES for way in ways]
    norms: dict[Any, float] = {}  # gradient norms of transformer-engine's layers in bfloat16, by case
    for i, (name, way) in enumerate(work):
        share = job.left_s / (len(work) - i)
        with tempfile.TemporaryDirectory() as home:
            config = shapes.write(name, Path(home), tiny=job.tiny)
            try:
                _shape(job, name, config, Path(home), way=way, norms=norms, until=time.monotonic() + share)
            except UsageError as e:  # FP8, which not every GPU has
                job.skipped(f"{name}, {way}: {e}")
        actors.release()


def _shape(job: Job, name: str, config: dict[str, Any], home: Path, *, way: str, norms: dict[Any, float], until: float) -> None:
    from megatron_mmsr1.megatron.layers import local_block

    packs = TINY_PACKS if job.tiny else PACKS
    started = time.monotonic()
    actor = actors.make(
        home,
        tokens=max(sum(p) for p in packs.values()),
        dtype="bfloat16",
        random_weights=True,
        provider={"transformer_layer_spec": local_block} if way == "local" else {},
        megatron={"local": {"attention": "padded"}, "fp8": {"fp8": "current"}}.get(way, {}),
    )
    fusions = {k: bool(getattr(actor.model.config, k)) for k in FUSIONS}
    built = {"seconds": time.monotonic() - started, "parameters": _parameters(actor), "fusions": fusions}
    job.row(shape=name, what="built", **built)
    ways = attentions(cuda=job.device == "cuda") if way == "local" else {way: ("", contextlib.nullcontext)}
    cases = [(a, r, p) for a in ways for r in RECOMPUTE for p in packs]
    for attention, recompute, pack in cases:
        case = {"shape": name, "attention": attention, "recompute": recompute, "tokens": sum(packs[pack])}
        if until - time.monotonic() < (0 if job.tiny else CASE_S):
            job.skipped(f"{name}, {attention}, recompute {recompute}, {pack} tokens: no time was left")
            continue
        actors.set_recompute(actor, recompute)
        kernel, around = ways[attention]
        actors.set_attention(actor, kernel)
        with around():
            found = _measured(actor, config, packs[pack])
        job.row(**case, **found)
        # One that is forced may refuse a shape; one that says that it lacks nothing may not.
        if not attention.startswith("padded-") and "error" in found and not found["error"].startswith("OutOfMemoryError"):
            job.fault(f"{case}: {found['error']}")
        at = (name, recompute, pack)
        if way == "transformer-engine" and "grad_norm" in found:
            norms[at] = found["grad_norm"]
        elif way == "fp8" and at in norms and not abs(found.get("grad_norm", 0) / norms[at] - 1) <= ALLOWED_FP8:
            job.fault(f"{case}: the gradient norm is {found.get('grad_norm')}, in bfloat16 {norms[at]}")


def _measured(actor: Any, config: dict[str, Any], lengths: list[int]) -> dict[str, Any]:
    """What was measured, or the error in its place."""
    import torch

    from megatron_mmsr1.megatron import platform

    rollouts = actors.rollouts(lengths, shapes.ordinary_ids(config))
    weights = actors.advantages(len(lengths))
    try:
        with _optimizer_clock(actor) as spent:
            actor.train_step(rollouts, weights)
            spent.clear()
            torch.cuda.reset_peak_memory_stats()
            steps = [actor.train_step(rollouts, weights) for _ in range(STEPS)]
    except RuntimeError as e:  # out of memory, or a kernel that does not take these shapes
        error = f"{type(e).__name__}: {e}"[:300]
    else:
        seconds = statistics.median(s["train_seconds"] for s in steps)
        scored = sum(n // 2 for n in lengths)
        return _rates(seconds, statistics.median(spent), flops.train_step(config["text_config"], lengths, scored)) | {
            "loss": steps[-1]["loss"],
            "grad_norm": steps[-1]["grad_norm"],
            "peak_memory_gib": steps[-1]["peak_memory_gib"],
        }
    # Outside of the handler, which holds the frames and so their tensors. A GPU that is in an error state says so here.
    platform.synchronize()
    actors.release()
    return {"error": error}


def _rates(seconds: float, optimizer: float, operations: float) -> dict[str, Any]:
    from megatron_mmsr1.megatron import platform

    found: dict[str, Any] = {"seconds": seconds, "optimizer_seconds": optimizer, "tflop_per_s": operations / seconds / 1e12}
    peak = flops.peak(platform.device_name())
    if peak:
        found["mfu"] = operations / seconds / peak
        found["mfu_without_optimizer"] = operations / (seconds - optimizer) / peak
    return found


@contextlib.contextmanager
def _optimizer_clock(actor: Any) -> Iterator[list[float]]:
    """The seconds of each `optimizer.step` meanwhile."""
    from megatron_mmsr1.megatron import platform

    spent: list[float] = []
    step = actor.optimizer.step

    def timed() -> Any:
        platform.synchronize()
        started = time.perf_counter()
        found = step()
        platform.synchronize()
        spent.append(time.perf_counter() - started)
        return found

    actor.optimizer.step = timed
    try:
        yield spent
    finally:
        del actor.optimizer.step


def _parameters(actor: Any) -> int:
    return sum(p.numel() for p in actor.model.core.parameters())
