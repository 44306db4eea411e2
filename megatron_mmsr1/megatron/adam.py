"""Adam with decoupled weight decay, its state laid out as megatron-core's distributed optimizer expects it.

NVIDIA's fused Adams (apex, transformer-engine) keep the step count in the parameter group; torch's keeps one a parameter,
which megatron-core 0.19's distributed-optimizer checkpoints do not survive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from megatron_mmsr1.procs import patches


class GroupStepAdam(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101, algorithm 2) with bias correction; state a parameter: `exp_avg`, `exp_avg_sq`."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        **_: Any,
    ) -> None:
        if not adam_w_mode:
            raise ValueError("GroupStepAdam decouples weight decay; set decoupled_weight_decay")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params)

    def _update(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        step, lr, (beta1, beta2) = group["step"], group["lr"], group["betas"]
        for p in params:
            if not self.state[p]:
                self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        grads: Any = [p.grad for p in params]
        mean = [self.state[p]["exp_avg"] for p in params]
        square = [self.state[p]["exp_avg_sq"] for p in params]
        torch._foreach_lerp_(mean, grads, 1 - beta1)
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, grads, grads, 1 - beta2)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        scale = torch._foreach_sqrt(square)
        torch._foreach_div_(scale, (1 - beta2**step) ** 0.5)
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_addcdiv_(params, mean, scale, -lr / (1 - beta1**step))


def install() -> None:
    """Make megatron-core's optimizers use this Adam, where neither apex nor transformer-engine brings a fused one."""
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distributed

    if not optimizer.USING_PYTORCH_OPTIMIZER:
        return
    patches.check("group-step-adam")
    for module in (optimizer, distributed):
        setattr(module, "Adam", GroupStepAdam)  # noqa: B010
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distributed.HAVE_APEX_OR_TE = distributed.USING_APEX_OPTIMIZER = True
