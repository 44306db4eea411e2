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

# Lengths as of a search conversation's rollouts: 8,192 and 16,384 tokens.
PACKS = {"8k": [1024, 1536, 2048, 3584], "16k": [1024, 1536, 2048, 2560, 4096, 5120]}
TINY_PACKS = {"8k": [16, 24, 24], "16k": [16, 24, 40, 48]}
DEFAULTS = ("padded", "transformer-engine")  # what the trainer takes by itself; other kernels may refuse a shape
RECOMPUTE = ("none", "selective", "full")
# megatron-core's switches that a dense model without transformer-engine could have on.
FUSIONS = (
    "bias_activation_fusion",
    "bias_dropout_fusion",
    "gradient_accumulation_fusion",
    "persist_layer_norm",
    "apply_rope_fusion",
)
STEPS = 2  # that are measured, after one that is not
CASE_S = 8  # a case is not begun with less time than this left

Attention = Callable[[], contextlib.AbstractContextManager[Any]]


def attentions(*, cuda: bool) -> dict[str, Attention]:
    """Name -> what to enter around a step. The padded attention asks torch, which chooses a kernel unless told to use one."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = [SDPBackend.FLASH_ATTENTION]
    backends += [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION] if cuda else [SDPBackend.MATH]
    forced = {f"padded-{b.name.lower().removesuffix('_attention')}": lambda b=b: sdpa_kernel([b]) for b in backends}
    return {"padded": contextlib.nullcontext, **forced}


def run(job: Job) -> None:
    actors.prepare()
    from megatron_mmsr1.megatron.bridge import has_transformer_engine

    fused = has_transformer_engine()
    work = [(name, te) for name in shapes.NAMES for te in ([True, False] if fused else [False])]
    for i, (name, te) in enumerate(work):
        share = job.left_s / (len(work) - i)
        with tempfile.TemporaryDirectory() as home:
            config = shapes.write(name, Path(home), tiny=job.tiny)
            _shape(job, name, config, Path(home), te=te, until=time.monotonic() + share)
        actors.release()


def _shape(job: Job, name: str, config: dict[str, Any], home: Path, *, te: bool, until: float) -> None:
    from megatron_mmsr1.megatron.layers import local_block

    packs = TINY_PACKS if job.tiny else PACKS
    started = time.monotonic()
    actor = actors.make(
        home,
        tokens=max(sum(p) for p in packs.values()),
        dtype="bfloat16",
        random_weights=True,
        provider={} if te else {"transformer_layer_spec": local_block},
    )
    fusions = {k: bool(getattr(actor.model.config, k)) for k in FUSIONS}
    built = {"seconds": time.monotonic() - started, "parameters": _parameters(actor), "fusions": fusions}
    job.row(shape=name, what="built", **built)
    ways = {"transformer-engine": contextlib.nullcontext} if te else attentions(cuda=job.device == "cuda")
    cases = [(a, r, p) for a in ways for r in RECOMPUTE for p in packs]
    for attention, recompute, pack in cases:
        case = {"shape": name, "attention": attention, "recompute": recompute, "tokens": sum(packs[pack])}
        if until - time.monotonic() < (0 if job.tiny else CASE_S):
            job.skipped(f"{name}, {attention}, recompute {recompute}, {pack} tokens: no time was left")
            continue
        actors.set_recompute(actor, recompute)
        with ways[attention]():
            found = _measured(actor, config, packs[pack])
        job.row(**case, **found)
        if attention in DEFAULTS and "error" in found and not found["error"].startswith("OutOfMemoryError"):
            job.fault(f"{case}: {found['error']}")


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
