"""The trainer's own actor over a shape or a checkpoint, and what it is fed: single process, without torchrun, whose store
would ask for one version of torch (procs/bound_store.py)."""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_mmsr1.procs import patches
from megatron_mmsr1.trajectory import Trajectory


def prepare() -> None:
    """Make megatron importable. On the CPU also with a torch that the trainer was not made for, and says so."""
    patches.accept("torch-cuda-on-cpu")
    from megatron_mmsr1.megatron import platform

    platform.install()


def make(
    path: Path,
    *,
    tokens: int,
    dtype: str,
    random_weights: bool = False,
    freeze_vision: bool = True,
    supervised: bool = False,
    provider: dict[str, Any] | None = None,
    megatron: dict[str, Any] | None = None,
    rate: float = 1e-6,
) -> Any:
    """A MegatronActor of one rank that packs up to `tokens` tokens into a micro-batch; GRPO without a reference, or SFT."""
    from megatron_mmsr1.config import parse
    from megatron_mmsr1.data.images import ImageStore
    from megatron_mmsr1.megatron.actor import MegatronActor

    cfg = parse(
        {
            "model": {"path": str(path), "dtype": dtype, "freeze_vision": freeze_vision},
            "protocol": {"max_prompt_tokens": 1, "max_turn_tokens": 1},  # so that a tiny budget of tokens is allowed
            "megatron": {"tokens_per_microbatch": tokens, "provider": provider or {}} | (megatron or {}),
            "algorithm": {"name": "sft"} if supervised else {"kl_coef": 0.0},
            "optimizer": {"lr": rate},
        }
    )
    return MegatronActor(cfg, ImageStore(None), total_steps=1000, random_weights=random_weights)


def release() -> None:
    """Give back the memory of actors that nobody holds any more; the actor's own constructor froze its objects."""
    import torch

    gc.unfreeze()
    gc.collect()
    torch.cuda.empty_cache()


def set_recompute(actor: Any, mode: str) -> None:
    """What `megatron.recompute`, and `megatron.offload.activations` of "full offloaded", would have set, on a model that is
    built: a 3B model is not built anew for it."""
    from megatron_mmsr1.megatron import offload

    config, decoder = actor.model.config, actor.model.core.decoder
    full = mode.startswith("full")
    config.recompute_granularity = None if mode == "none" else mode.split()[0]
    vars(decoder).pop("forward", None)
    if mode == "full offloaded":
        offload.install(decoder, config.hidden_size)
    config.recompute_method, config.recompute_num_layers = ("uniform", 1) if full else (None, None)
    for module in actor.model.core.modules():
        if hasattr(module, "checkpoint_core_attention"):
            module.checkpoint_core_attention = mode == "selective"


def set_attention(actor: Any, kernel: str) -> None:
    """What `megatron.attention` would have set, on a model whose attention is ours."""
    from megatron_mmsr1.megatron.attention.layer import PackedAttention

    for module in actor.model.core.modules():
        if isinstance(module, PackedAttention):
            module.kernel = kernel


def rollouts(lengths: Sequence[int], words: int, *, seed: int = 0) -> list[Trajectory]:
    """Trajectories of these lengths over random ids below `words`, text alone. The second half of each was sampled."""
    rng = random.Random(seed)
    out = []
    for i, n in enumerate(lengths):
        t = Trajectory(f"p{i}", f"g{i}", 0, "q", ["a"])
        ids = [rng.randrange(words) for _ in range(n)]
        t.append("prompt", ids[: n - n // 2], "")
        t.append("assistant", ids[n - n // 2 :], "", logprobs=[-1.0] * (n // 2), weight_versions=[0] * (n // 2))
        out.append(t)
    return out


def advantages(n: int) -> list[float]:
    """One a trajectory, of both signs, none zero."""
    return [(-1.0) ** i * (1 + i / n) for i in range(n)]
