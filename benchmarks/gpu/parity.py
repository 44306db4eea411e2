"""Does the GPU compute what the CPU computes? Logits, log-probs, loss and gradients of the trainer's model, over the small
Qwen2.5-VL that ships with the Atlas (its real tower, pictures and text): float32 against float32, then bfloat16 against it.

The reference is our own trainer on the CPU, in a process that sees no GPU; tests/test_megatron.py compares that with
transformers.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu import actor as actors
from benchmarks.gpu.job import Job

MODEL = Path(__file__).parents[2] / "megatron_mmsr1" / "atlas" / "checkpoints" / "tilted"
WORDS = 500  # the ids of its tokenizer from 504 on are special
SIZES = ((56, 56), (112, 56), (56, 84), (84, 84))  # a picture a conversation
TOKENS = (24, 61, 33, 90)
# The largest relative error, as |a - b| / |b| in L2 norms. Sums run in other orders: float32 keeps 7 digits, bfloat16 2 to 3.
ALLOWED = {
    "float32": {"logits": 1e-4, "log_probs": 1e-4, "loss": 1e-4, "gradients": 1e-3},
    "bfloat16": {"logits": 0.05, "log_probs": 0.1, "loss": 0.1, "gradients": 0.2},
}
# transformer-engine's fused layers keep a norm's weight under the name of the projection that follows it.
_FUSED = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


def run(job: Job) -> None:
    actors.prepare()
    import torch

    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "reference.pt"
        process = _start_reference(file)
        found = {dtype: compute(dtype, local=False) for dtype in ALLOWED}
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the reference on the CPU ended with exit code {process.exitcode}")
        reference = torch.load(file)
    for dtype, values in found.items():
        for name, allowed in ALLOWED[dtype].items():
            row = {"dtype": dtype, "what": name, **compare(values[name], reference[name]), "allowed": allowed}
            job.row(**row)
            if not row["relative_error"] <= allowed:
                job.fault(f"{dtype} {name}: relative error {row['relative_error']:.2e}, allowed {allowed:.0e}")


def compare(a: Any, b: Any) -> dict[str, Any]:
    """The error of a against b: of tensors or numbers, and of dictionaries over all of their tensors together."""
    if not isinstance(b, dict):
        return {"relative_error": _relative([a], [b]), "largest_difference": float((a - b).abs().max())}
    common = sorted(a.keys() & b.keys())
    worst = max(common, key=lambda n: _relative([a[n]], [b[n]]))
    return {
        "relative_error": _relative([a[n] for n in common], [b[n] for n in common]),
        "worst": worst,
        "worst_relative_error": _relative([a[worst]], [b[worst]]),
        "tensors": len(common),
        "only_in_one": sorted(a.keys() ^ b.keys()),
    }


def _relative(a: list[Any], b: list[Any]) -> float:
    difference = sum(float((x - y).double().square().sum()) for x, y in zip(a, b, strict=True))
    size = sum(float(y.double().square().sum()) for y in b)
    return (difference / size) ** 0.5 if size else float(difference > 0)


def compute(dtype: str, *, local: bool) -> dict[str, Any]:
    """logits [T, V], log_probs [T], loss [], gradients by name: float32 on the CPU. The loss is the mean negative log-prob:
    that of a single GRPO update does not depend on the logits at all, because its ratios are 1. `local`: without
    transformer-engine's layers, even where it is installed: they need a GPU."""
    import numpy as np
    import torch

    from megatron_mmsr1.megatron.layers import local_block
    from megatron_mmsr1.megatron.update import Update

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 shall mean it
    provider = {"transformer_layer_spec": local_block} if local else {}
    actor = actors.make(MODEL, tokens=512, dtype=dtype, freeze_vision=False, supervised=True, provider=provider)
    rollouts = conversations(actor)
    logits = torch.cat(actor.logits(rollouts))
    log_probs = torch.tensor([x for row in actor.log_probs(rollouts) for x in row])
    update: Any = Update(actor, rollouts, [np.zeros(t.sampled_tokens) for t in rollouts])
    actor.optimizer.zero_grad()
    reports = actor.policy.train(update.objective.batches, update.objective.share)
    gradients = {_plain(n): p.main_grad.float().cpu().clone() for n, p in actor.model.core.named_parameters()}
    del actor, update
    actors.release()
    return {
        "logits": logits.float().cpu(),
        "log_probs": log_probs,
        "loss": torch.tensor(sum(float(r[0]) for r in reports)),
        "gradients": gradients,
    }


def conversations(actor: Any) -> list[Any]:
    """One picture and some text each, the second half of the text sampled."""
    import numpy as np
    from PIL import Image

    from megatron_mmsr1.data.images import canonicalize
    from megatron_mmsr1.trajectory import ImageRef

    rng = np.random.default_rng(0)
    config = actor.model.files.config
    out = actors.rollouts(TOKENS, WORDS)
    for t, (width, height) in zip(out, SIZES, strict=True):
        png = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(png, "PNG")
        image = canonicalize(png.getvalue(), min_pixels=56 * 56, max_pixels=28 * 28 * 64)
        ref = ImageRef(actor.images.put(image), image.grid_thw)
        pads = [config["image_token_id"]] * ref.tokens(actor.packing.merge)
        t.append("tool", [config["vision_start_token_id"], *pads, config["vision_end_token_id"]], "", images=[ref])
        t.append("assistant", t.token_ids[:9], "", logprobs=[-1.0] * 9, weight_versions=[0] * 9)
    return out


def _plain(name: str) -> str:
    for fused, plain in _FUSED.items():
        name = name.replace(fused, plain)
    return name


def _start_reference(file: Path) -> Any:
    """The same on the CPU, in a process of its own that finds no CUDA device."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is spawned inherits it; a CUDA that runs here has read it already
    try:
        process = multiprocessing.get_context("spawn").Process(target=_reference, args=(file,))
        process.start()
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
    return process


def _reference(file: Path) -> None:
    actors.prepare()
    import torch

    torch.save(compute("float32", local=True), file)
