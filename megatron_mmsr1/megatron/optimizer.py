"""The optimizer: megatron-core's, with the distributed optimizer's sharding where the config asks for it."""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.megatron import adam, platform
from megatron_mmsr1.megatron.model import Built


def build_optimizer(cfg: RunConfig, model: Built) -> Any:
    """AdamW over the model's trainable parameters, with float32 master weights under bfloat16. Biases and norms are not
    decayed: megatron-core puts them into groups of `wd_mult` 0, which `set_rates` applies before every update."""
    o, on_host = cfg.optimizer, cfg.megatron.offload.optimizer
    small = torch.bfloat16 if o.moments_dtype == "bfloat16" else None
    ours = bool(on_host or small)
    adam.install(always=ours)
    optimizer: Any = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=o.lr,
            min_lr=o.min_lr,
            weight_decay=o.weight_decay,
            adam_beta1=o.betas[0],
            adam_beta2=o.betas[1],
            adam_eps=o.eps,
            clip_grad=o.clip_grad or math.inf,  # 0 clips nothing, but the norm is measured all the same
            bf16=model.config.bf16,
            params_dtype=model.config.params_dtype,
            use_distributed_optimizer=cfg.megatron.distributed_optimizer,
        ),
        model.chunks,
        use_gloo_process_groups=platform.has_cuda(),
    )
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if ours:
            part.optimizer.keep(on_host, small)
        else:
            part.init_state_fn(part.optimizer, part.config)  # so that a checkpoint can be written before the first update
    return optimizer


def set_rates(optimizer: Any, rate: float, weight_decay: float) -> None:
    """Set the learning rate and the weight decay of the next update. megatron-core only marks a group's share of the decay;
    applying the mark is its scheduler's work, which is not used here."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = weight_decay * group.get("wd_mult", 1.0)


def restore(optimizer: Any, loaded: dict[Any, Any]) -> None:
    """Put back what a checkpoint of any layout holds of the (distributed) optimizer.

    megatron-core keeps spread experts in an optimizer of their own, and numbers the optimizers where there are several. Weights
    and moments go by the parameters' names; what is left, and is nobody's parameter, is the number of updates.
    """
    parts = optimizer.chained_optimizers
    alone = {k: v for k, v in loaded.items() if not isinstance(k, int)}
    numbered = [loaded[k] for k in sorted(k for k in loaded if isinstance(k, int))]
    here, wrote = ([alone], numbered) if len(parts) == 1 else (numbered, [alone] if alone else [])
    if not wrote:
        optimizer.load_state_dict(loaded)
        return
    steps = [group.get("step", 0) for state in wrote for group in state["optimizer"]["param_groups"]]
    for part, state in zip(parts, here, strict=True):
        own = part.state_dict()
        for group in own["optimizer"]["param_groups"]:
            group["step"] = max(steps)
        for key, value in (own | {k: v for k, v in wrote[0].items() if k not in own}).items():
            state.setdefault(key, value)
    optimizer.load_state_dict(here[0] if len(parts) == 1 else dict(enumerate(here)))
