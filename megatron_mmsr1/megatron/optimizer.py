"""The optimizer: megatron-core's, with the distributed optimizer's sharding where the config asks for it."""

from __future__ import annotations

import math
from typing import Any

from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.megatron import adam, platform
from megatron_mmsr1.megatron.model import Built


def build_optimizer(cfg: RunConfig, model: Built) -> Any:
    """AdamW over the model's trainable parameters, with float32 master weights under bfloat16. Biases and norms are not
    decayed: megatron-core puts them into groups of `wd_mult` 0, which `set_rates` applies before every update."""
    adam.install()
    o = cfg.optimizer
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
        part.init_state_fn(part.optimizer, part.config)  # so that a checkpoint can be written before the first update
    return optimizer


def set_rates(optimizer: Any, rate: float, weight_decay: float) -> None:
    """Set the learning rate and the weight decay of the next update. megatron-core only marks a group's share of the decay;
    applying the mark is its scheduler's work, which is not used here."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = weight_decay * group.get("wd_mult", 1.0)
