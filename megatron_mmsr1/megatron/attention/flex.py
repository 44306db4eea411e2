"""torch's flex_attention under a block mask of the whole pack: shared prefixes and shares of a pack are a matter of the mask.

Row i of the pack sees row j if j <= i < until[j] (`layout.Packed.until`): a run's rows are seen by those after them in the run,
and by all rows of the runs below it, which follow it. On CUDA it is compiled. Uncompiled, on a CPU, it writes all scores out
and torch gives it no gradient: for tests alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_mmsr1.megatron.attention.kernel import Kernel, Situation, needs_gpu

if TYPE_CHECKING:
    from megatron_mmsr1.megatron.layout import Packed

BLOCK = 128  # rows and keys of a block: flex_attention's own default


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Packed, scale: float) -> Tensor:
    """As `kernel.Attend`, of any layout."""
    if layout.mask is None:  # once for all layers
        layout.mask = mask(layout)
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    out = _kernel(query.is_cuda)(q, k, v, block_mask=layout.mask, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1).flatten(1)


@functools.cache
def _kernel(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # With fullgraph torch raises where it would go on uncompiled.
    return torch.compile(flex_attention, fullgraph=True) if compiled else flex_attention


def mask(layout: Packed) -> Any:
    """The BlockMask of a layout. torch's own way to make one writes the whole mask out."""
    from torch.nn.attention.flex_attention import BlockMask

    until, rows = layout.until, None if layout.exchange is None else layout.exchange.own

    def whole(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < until[k])

    def share(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        assert rows is not None
        return (k <= rows[q]) & (rows[q] < until[k])

    sizes = (len(until if rows is None else rows), len(until))
    some, every = blocks(until, rows)
    return BlockMask.from_kv_blocks(
        *_ordered(some & ~every),
        *_ordered(every),
        BLOCK_SIZE=BLOCK,
        mask_mod=whole if rows is None else share,
        seq_lengths=sizes,
    )


def blocks(until: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """bool [blocks of rows, blocks of keys]: may any row of the one see a key of the other, and does every row see every key.
    The first may be true too often where `rows`, of this rank, are not one stretch."""
    keys = torch.arange(len(until), dtype=until.dtype, device=until.device)
    rows = keys if rows is None else rows.to(until.dtype)
    (first_row, last_row), (first, last), (soonest, latest) = _bounds(rows), _bounds(keys), _bounds(until)
    some = (first <= last_row[:, None]) & (latest > first_row[:, None])
    every = (last <= first_row[:, None]) & (last_row[:, None] < soonest)
    for side, n in ((every[-1:], len(rows)), (every[:, -1:], len(keys))):
        if n % BLOCK:  # nothing is known of what stands behind the end
            side.fill_(False)
    return some, every


def _bounds(x: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest of each block."""
    more = -len(x) % BLOCK
    low = F.pad(x, (0, more), value=torch.iinfo(x.dtype).max).view(-1, BLOCK).amin(1)
    return low, F.pad(x, (0, more), value=-1).view(-1, BLOCK).amax(1)


def _ordered(dense: Tensor) -> tuple[Tensor, Tensor]:
    """bool [n, m] -> how many blocks of keys each block of rows has, and which, first; int32 [1, 1, n] and [1, 1, n, m]."""
    chosen = dense.to(torch.int32)
    return chosen.sum(1, dtype=torch.int32)[None, None], chosen.argsort(dim=1, descending=True, stable=True).int()[None, None]


def _lacks(s: Situation) -> Iterator[str]:
    yield from needs_gpu(s)  # torch has no gradient of it on a CPU
    if not s.triton:
        yield "triton, for which it is compiled, is not installed"
    if not 16 <= s.head <= 256:
        yield f"a head size of {s.head}, not between 16 and 256"


# Not automatic: its compiled form was never run by us.
KERNEL = Kernel("flex", "torch's flex_attention under a block mask", lambda s: list(_lacks(s)), attend, automatic=False)
