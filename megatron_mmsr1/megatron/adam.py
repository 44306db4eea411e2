"""Adam with decoupled weight decay, its state laid out as megatron-core's distributed optimizer expects it.

NVIDIA's fused Adams (apex, transformer-engine) keep the step count in the parameter group; torch's keeps one a parameter,
which megatron-core 0.19's distributed-optimizer checkpoints do not survive. NVIDIA's also cannot leave their moments in the
host's memory, and megatron-core's own way to do that (its HybridDeviceOptimizer) updates on the CPU with torch's Adam.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from megatron_mmsr1.megatron import platform
from megatron_mmsr1.procs import patches

MOMENTS = ("exp_avg", "exp_avg_sq")


class GroupStepAdam(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101, algorithm 2) with bias correction; state a parameter: `exp_avg`, `exp_avg_sq`.

    `keep` may leave moments in the host's memory, or in fewer bits. Each update is computed where the parameter is, in its
    type, so that moments in the host's memory give the same bits.
    """

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
        self.on_host: set[torch.Tensor] = set()
        self.dtype: torch.dtype | None = None

    def keep(self, on_host: float, dtype: torch.dtype | None) -> None:
        """The moments of a share of all numbers in the host's memory, and all moments in `dtype` (None: the parameters')."""
        params = [p for group in self.param_groups for p in group["params"]]
        left, self.dtype = on_host * sum(p.numel() for p in params), dtype
        for p in params:
            if left > 0:
                self.on_host.add(p)
                left -= p.numel()
            self._moments(p)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            params = [p for p in group["params"] if p.grad is not None]
            kept = [self._moments(p) for p in params]
            here = [i for i, p in enumerate(params) if p not in self.on_host and self.dtype is None]
            if here:
                self._update(group, [params[i] for i in here], *([kept[i][k] for i in here] for k in MOMENTS))
            for i in sorted(set(range(len(params))) - set(here)):  # one at a time: there is room for no more
                p, state = params[i], kept[i]
                moments = [state[k].to(p.device, p.dtype, non_blocking=True, copy=True) for k in MOMENTS]
                self._update(group, [p], *([m] for m in moments))
                for k, m in zip(MOMENTS, moments, strict=True):
                    state[k].copy_(m, non_blocking=True)
        if self.on_host:  # whoever reads them next may be on the host
            platform.synchronize()

    def _moments(self, p: torch.Tensor) -> dict[str, torch.Tensor]:
        """Those of a parameter, in their place and type: zeros at first, and moved if a checkpoint has put them elsewhere."""
        state, dtype = self.state[p], self.dtype or p.dtype
        device = torch.device("cpu") if p in self.on_host else p.device
        for k in MOMENTS:
            if k not in state:
                state[k] = torch.zeros_like(p, dtype=dtype)
            if (state[k].dtype, state[k].device) != (dtype, device):
                pinned = device != p.device
                state[k] = torch.empty_like(p, dtype=dtype, device=device, pin_memory=pinned).copy_(state[k])
        return state

    def _update(
        self, group: dict[str, Any], params: list[torch.Tensor], mean: list[torch.Tensor], square: list[torch.Tensor]
    ) -> None:
        step, lr, (beta1, beta2) = group["step"], group["lr"], group["betas"]
        grads: Any = [p.grad for p in params]
        torch._foreach_lerp_(mean, grads, 1 - beta1)
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, grads, grads, 1 - beta2)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        scale = torch._foreach_sqrt(square)
        torch._foreach_div_(scale, (1 - beta2**step) ** 0.5)
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_addcdiv_(params, mean, scale, -lr / (1 - beta1**step))


def install(*, always: bool = False) -> None:
    """Make megatron-core's optimizers use this Adam: where neither apex nor transformer-engine brings a fused one, or
    `always`."""
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distributed

    if not (always or optimizer.USING_PYTORCH_OPTIMIZER):
        return
    patches.check("group-step-adam")
    for module in (optimizer, distributed):
        setattr(module, "Adam", GroupStepAdam)  # noqa: B010
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distributed.HAVE_APEX_OR_TE = distributed.USING_APEX_OPTIMIZER = True
    distributed.USING_TE_OPTIMIZER = False
