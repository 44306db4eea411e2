"""Which kernel attends, and why no other does: a function of the machine and the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.megatron import bridge, platform
from megatron_mmsr1.megatron.attention import cudnn, flash, flex, padded, transformer_engine, varlen
from megatron_mmsr1.megatron.attention.kernel import NO_GPU, Kernel, Situation

AUTO = "auto"
SLOW = "On this GPU torch may write all scores out: slow, and memory grows with the square of a sequence's length"
# In the order in which `auto` tries them; the last can always be.
KERNELS = {k.KERNEL.name: k.KERNEL for k in (transformer_engine, varlen, flash, cudnn, flex, padded)}


@dataclass(frozen=True)
class Choice:
    """`lacking`: of each kernel that `auto` would rather have taken, what it lacks. `slow`: torch may write all scores out on a
    GPU, which takes time and memory by the square of a sequence's length."""

    kernel: Kernel
    asked: bool
    lacking: dict[str, list[str]]
    slow: bool

    @property
    def reason(self) -> str:
        """ "padded (...); not transformer-engine: not installed, no CUDA device; ...": the kernel, and why none before it."""
        said = f"{self.kernel.name} ({self.kernel.what})"
        if self.asked:
            return f"{said}, as megatron.attention says"
        shared: dict[str, list[str]] = {}
        for name, lacks in self.lacking.items():
            shared.setdefault(NO_GPU if NO_GPU in lacks else ", ".join(lacks), []).append(name)
        return "; ".join([said, *(f"not {' or '.join(names)}: {lacks}" for lacks, names in shared.items())])


def choose(wanted: str, s: Situation) -> Choice:
    """The kernel of this name, or the first that can. UsageError for one that cannot, naming what lacks and which can."""
    lacking = {name: lacks for name, k in KERNELS.items() if (lacks := k.lacks(s))}
    if wanted != AUTO:
        if wanted in lacking:
            can = ", ".join(name for name in KERNELS if name not in lacking)
            raise UsageError(
                f"megatron.attention={wanted} cannot be here: {', '.join(lacking[wanted])}. What can: {can}; leave it at auto"
            )
        return Choice(KERNELS[wanted], True, {}, s.cuda and wanted == "padded")
    before: dict[str, list[str]] = {}
    for name, kernel in KERNELS.items():
        if kernel.automatic and name not in lacking:
            return Choice(kernel, False, before, s.cuda and name == "padded")
        if kernel.automatic:
            before[name] = lacking[name]
    raise AssertionError("padded lacks nothing")


def chosen(cfg: RunConfig, model: Any) -> Choice:
    """For a run on this machine; `model`: megatron-core's description, or the configuration of the model built by it. Raises
    UsageError as `choose`."""
    head = model.kv_channels or model.hidden_size // model.num_attention_heads
    return choose(cfg.megatron.attention, situation(cfg.model.dtype, head, cfg.megatron.context_parallel, shares_prefixes(cfg)))


def shares_prefixes(cfg: RunConfig) -> bool:
    """Whether a micro-batch holds what its trajectories begin with once."""
    wanted = cfg.megatron.share_prefixes
    return not platform.has_cuda() if wanted is None else wanted


def situation(dtype: str = "bfloat16", head: int = 128, context_parallel: int = 1, shared_prefixes: bool = False) -> Situation:
    """Of this machine and of a run with a model of these."""
    return Situation(
        transformer_engine=bridge.has_transformer_engine(),
        dtype=dtype,
        head=head,
        context_parallel=context_parallel,
        shared_prefixes=shared_prefixes,
        **platform.attention_facts(),
    )
