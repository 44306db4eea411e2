"""`python -m megatron_mmsr1.megatron.attention.probe CONFIG`: the attention that a run's trainer would use on this machine.

It is built by the layer specification of the run's own model, with its heads and its type, run forward and backward on a few
packed tokens under the profiler, and compared with a softmax written out in float32. A line of JSON says what was found.
"""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

from megatron_mmsr1.megatron import platform

LENGTHS = (24, 40, 7)
WORDS = ("attention", "attn", "flash", "fmha")
TORCH = "aten::_scaled_dot_product_"  # what scaled_dot_product_attention has chosen


def probe(config: Path) -> dict[str, Any]:
    """{"choice", "slow", "layer", "kernels", "dtype", "device", "error", "gradient_error"}: errors relative to the largest
    entry. The choice is the whole run's, what is run is one rank's. `platform.install` comes first.
    Raises UsageError as `model.build`, and whatever a kernel that does not run raises."""
    import torch
    from megatron.core.transformer.enums import AttnMaskType

    from megatron_mmsr1 import config as configs
    from megatron_mmsr1.megatron import parallel
    from megatron_mmsr1.megatron.attention.choice import chosen
    from megatron_mmsr1.megatron.attention.layer import PackedAttention
    from megatron_mmsr1.megatron.layout import packed
    from megatron_mmsr1.megatron.model import described
    from megatron_mmsr1.models import of_checkpoint

    whole = configs.load(config)
    cfg = alone(whole)
    parallel.init(cfg)
    files = of_checkpoint(cfg.model.path, cfg.model.family)
    _, provider = described(cfg, files, cfg.model.path, config_only=True)
    spec: Any = provider.transformer_layer_spec
    spec = spec(provider) if callable(spec) else spec
    layer = spec.layer_specs[0] if hasattr(spec, "layer_specs") else spec  # of a block, or of each of its layers
    causal = AttnMaskType.causal
    choice = chosen(whole, provider)
    build: Any = layer.submodules.self_attention.submodules.core_attention
    if choice.kernel.attend is not None:  # one rank alone might take another
        build = partial(PackedAttention, kernel=choice.kernel.name)
    attend = build(config=provider, layer_number=1, attn_mask_type=causal, attention_type="self")
    torch.manual_seed(0)
    device, dtype = platform.device(), getattr(torch, cfg.model.dtype)
    d = provider.kv_channels or provider.hidden_size // provider.num_attention_heads
    heads = (provider.num_attention_heads, provider.num_query_groups, provider.num_query_groups)
    q, k, v = (torch.randn(sum(LENGTHS), h, d, dtype=dtype, device=device).requires_grad_() for h in heads)
    layout = packed(list(LENGTHS), device=device)

    def act() -> Any:
        return attend(q, k, v, None, attn_mask_type=causal, attention_bias=None, packed_seq_params=layout)

    out, names = _profiled(act)
    ours = torch.autograd.grad(out.float().square().sum(), (q, k, v))
    plain = [x.detach().float().requires_grad_() for x in (q, k, v)]
    wanted = _written_out(*plain)
    theirs = torch.autograd.grad(wanted.square().sum(), plain)
    return {
        "choice": choice.reason,
        "slow": choice.slow,
        "layer": type(attend).__name__,
        "kernels": names,
        "dtype": cfg.model.dtype,
        "device": platform.device_name(),
        "error": _off(out, wanted),
        "gradient_error": max(_off(a, b) for a, b in zip(ours, theirs, strict=True)),
    }


def alone(cfg: Any) -> Any:
    """The same run on one rank: its kernel, without what context-parallel ranks exchange around it."""
    one = {"tensor_parallel": 1, "pipeline_parallel": 1, "context_parallel": 1, "sequence_parallel": False}
    update = {"megatron": cfg.megatron.model_copy(update=one), "train": cfg.train.model_copy(update={"ranks": 1})}
    return cfg.model_copy(update=update)


def _profiled(act: Any) -> tuple[Any, list[str]]:
    """What it returns, and the names of the kernels that attended: torch's own choice, and those of CUDA."""
    from torch.profiler import ProfilerActivity, profile

    act()  # the first call may compile
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if platform.has_cuda() else [])]
    with profile(activities=kinds) as profiled:
        out = act()
        platform.synchronize()
    keys = [e.key for e in profiled.key_averages()]
    chosen = [k for k in keys if k.startswith(TORCH)]
    on_device = [e.key for e in profiled.key_averages() if e.self_device_time_total > 0] if platform.has_cuda() else []
    kernels = [k[:100] for k in on_device if any(w in k.lower() for w in WORDS) and not k.startswith("aten::")]
    return out, list(dict.fromkeys([*chosen, *kernels]))


def _written_out(q: Any, k: Any, v: Any) -> Any:
    """softmax(q k' / sqrt(d)) v inside each sequence, causal. q [T, heads, d], k and v [T, groups, d] -> [T, heads * d]."""
    import torch

    share, out = q.shape[1] // k.shape[1], []
    for a, b, c in zip(*(x.split(LENGTHS) for x in (q, k, v)), strict=True):
        b, c = (x.repeat_interleave(share, 1) for x in (b, c))
        scores = torch.einsum("qhd,khd->hqk", a, b) / math.sqrt(a.shape[-1])
        later = torch.ones(len(a), len(a), dtype=torch.bool, device=a.device).triu(1)
        weights = scores.masked_fill(later, -math.inf).softmax(-1)
        out.append(torch.einsum("hqk,khd->qhd", weights, c).flatten(1))
    return torch.cat(out)


def _off(found: Any, wanted: Any) -> float:
    return float((found.float().reshape(wanted.shape) - wanted).abs().max() / wanted.abs().max())


def main() -> None:
    platform.install()
    print(json.dumps(probe(Path(sys.argv[1]))))


if __name__ == "__main__":
    from megatron_mmsr1.errors import exit_with_message

    exit_with_message(main)
