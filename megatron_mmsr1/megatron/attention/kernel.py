"""What a kernel is, and the machine and run that it has to do with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_mmsr1.megatron.layout import Packed

# query [T, heads, d], key and value [T, groups, d], the layout of their pack, what scores are multiplied by -> [T, heads * d].
# Under context parallelism key and value are the whole pack's (`context_parallel.of_all`).
Attend = Callable[["Tensor", "Tensor", "Tensor", "Packed", float], "Tensor"]


@dataclass(frozen=True)
class Situation:
    """Of the machine: what is there. Of the run: what attention must do."""

    cuda: bool
    capability: tuple[int, int]  # of the GPU; (0, 0) without
    transformer_engine: bool  # is installed
    varlen: bool  # torch has torch.nn.attention.varlen as we call it
    flash: bool  # torch was built with FlashAttention
    cudnn: bool  # torch has cuDNN
    triton: bool  # is installed
    dtype: str  # "float32", "bfloat16"
    head: int  # numbers of one head
    context_parallel: int
    shared_prefixes: bool


@dataclass(frozen=True)
class Kernel:
    """`lacks`: a phrase for each thing without which it cannot be. `attend`: None of transformer-engine, which is a layer of
    its own. `automatic`: `auto` may take it."""

    name: str
    what: str
    lacks: Callable[[Situation], list[str]]
    attend: Attend | None
    automatic: bool = True


NO_GPU = "no CUDA device"


def needs_gpu(s: Situation, least: tuple[int, int] = (8, 0)) -> Iterator[str]:
    """A CUDA device of compute capability `least`."""
    if not s.cuda:
        yield NO_GPU
    elif s.capability < least:
        yield f"the GPU's compute capability is {'.'.join(map(str, s.capability))}, below {'.'.join(map(str, least))}"


def needs_half(s: Situation) -> Iterator[str]:
    """Sixteen bits a number."""
    if s.dtype != "bfloat16":
        yield f"model.dtype={s.dtype}, not bfloat16"


def needs_head(s: Situation, most: int, multiple: int = 8) -> Iterator[str]:
    """A head size that the kernel was built for."""
    if s.head % multiple or s.head > most:
        yield f"a head size of {s.head}, no multiple of {multiple} up to {most}"


def needs_whole_sequences(s: Situation) -> Iterator[str]:
    """Each sequence stands in the pack by itself, and all of it on this rank."""
    if s.shared_prefixes:
        yield "it knows no shared prefixes (megatron.share_prefixes)"
    if s.context_parallel > 1:
        yield f"it knows no share of a pack (megatron.context_parallel={s.context_parallel})"
