"""Where each token of a pack stands in padded batches of runs of similar length, and which runs stand below which.

A run is a sequence, or a piece of several that `data/prefixes.py` has put into the pack once. Under context parallelism a rank
holds two chunks of each run (`data/zigzag.py`), and a chunk is to attention what a run is without: a piece that is causal in
itself and sees others whole, which here are the keys of all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_mmsr1.data import zigzag


@dataclass(frozen=True)
class Share:
    """A rank's place among those that hold a pack together."""

    ranks: int
    rank: int


ALONE = Share(1, 0)


@dataclass
class Exchange:
    """Between the pack in its own order and what its ranks hold, one rank after the other: `held` int64 [T], the row of the
    pack that stands there, and `order` int64 [T], its inverse. `own`: int64 [T / ranks], this rank's part of `held`."""

    held: Tensor
    order: Tensor
    own: Tensor


@dataclass
class Packed(PackedSeqParams):
    """megatron-core's description of packed sequences (here: runs), plus their padded batches, worked out once for all layers.

    The batches lie end to end in S slots: `batches` holds (runs, longest) of each, `slots` int64 [T] the slot of each
    token, `gather` int64 [S] the token of each slot (any token, in padding). `below` holds (q, end of q, k, end of k): the
    rows q attend to all of the rows k too, of the runs above theirs.

    `until` int32 [rows of the pack]: the first row behind those that see this one; the rows between, it included, all do.
    `mask`: what `attention.flex` has made of that.

    Under context parallelism T, `slots`, `gather` and q are of this rank's tokens, in chunks; k, megatron-core's own fields
    and `keys` int64 [S], `gather` in rows of the pack, are of all ranks'.
    """

    batches: list[tuple[int, int]] = field(default_factory=list)
    slots: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    gather: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    keys: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    below: list[tuple[int, int, int, int]] = field(default_factory=list[tuple[int, int, int, int]])
    until: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))
    exchange: Exchange | None = None
    mask: Any = None


def packed(
    runs: list[int],
    parents: Sequence[int] = (),
    *,
    ends: Sequence[int] = (),
    share: Share = ALONE,
    device: torch.device,
) -> Packed:
    """The layout of runs of these lengths (each at least 1), laid end to end. `parents`: the run above each, -1 for none, in
    depth-first order; () where all are sequences of their own. `ends`: the tokens of each run before its padding, () where
    there is none. Raises ValueError for runs that do not divide over the ranks of `share`."""
    bounds = np.concatenate([[0], np.cumsum(runs)])
    cut = [zigzag.chunks(n, share.ranks, share.rank) for n in runs]
    lengths = [b - a for c in cut for a, b in c]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    batches: list[tuple[int, int]] = []
    slots = np.empty(starts[-1], dtype=np.int64)
    at = 0
    for members in _by_length(lengths):
        longest = lengths[members[0]]
        for row, i in enumerate(members):
            slots[starts[i] : starts[i + 1]] = at + row * longest + np.arange(lengths[i])
        batches.append((len(members), longest))
        at += len(members) * longest
    gather = np.zeros(at, dtype=np.int64)
    gather[slots] = np.arange(starts[-1])
    exchange = _exchange(runs, share, device) if share.ranks > 1 else None
    rows = torch.from_numpy(gather).to(device)
    whole = bounds.tolist()
    below = _below(whole, ends or runs, parents, share.ranks)
    until = np.repeat(bounds[1:], runs).astype(np.int32)
    for _, end, k0, k1 in below:
        until[k0:k1] = end * share.ranks
    if share.ranks > 1:
        below += _before(whole, cut, share.ranks)
    cumulative = torch.from_numpy(bounds.astype(np.int32)).to(device)
    return Packed(
        qkv_format="thd",
        cu_seqlens_q=cumulative,
        cu_seqlens_kv=cumulative,
        max_seqlen_q=max(runs),
        max_seqlen_kv=max(runs),
        batches=batches,
        slots=torch.from_numpy(slots).to(device),
        gather=rows,
        keys=rows if exchange is None else exchange.own[rows],
        below=below,
        until=torch.from_numpy(until).to(device),
        exchange=exchange,
    )


def _exchange(runs: list[int], share: Share, device: torch.device) -> Exchange:
    parts = [torch.from_numpy(zigzag.rows(runs, share.ranks, r)).to(device) for r in range(share.ranks)]
    held = torch.cat(parts)
    return Exchange(held, torch.argsort(held), parts[share.rank])


def _below(starts: list[int], ends: Sequence[int], parents: Sequence[int], ranks: int) -> list[tuple[int, int, int, int]]:
    """Of each run with runs below it: their rows, which follow it, and its own but for its padding."""
    last: dict[int, int] = {}  # the end of the rows below a run
    for i, parent in enumerate(parents):
        while parent >= 0:
            last[parent] = starts[i + 1]
            parent = parents[parent]
    return [(starts[i + 1] // ranks, end // ranks, starts[i], starts[i] + ends[i]) for i, end in sorted(last.items())]


def _before(starts: list[int], cut: Sequence[Sequence[tuple[int, int]]], ranks: int) -> list[tuple[int, int, int, int]]:
    """Of each chunk that is not its run's first: its rows, and all of the run's before it. Padding is at the run's end, where
    only padding comes after it."""
    found: list[tuple[int, int, int, int]] = []
    for start, pieces in zip(starts, cut, strict=False):
        at = start // ranks
        for a, b in pieces:
            if a:
                found.append((at, at + b - a, start, start + a))
            at += b - a
    return found


def _by_length(lengths: list[int]) -> list[list[int]]:
    """Sequences in batches, longest first, each padded by at most a quarter (or 32 tokens) of its batch's longest: attention
    costs the square of the padded length, and a batch costs a few kernel calls."""
    groups: list[list[int]] = []
    shortest = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and lengths[i] >= shortest:
            groups[-1].append(i)
        else:
            groups.append([i])
            shortest = min(lengths[i] * 3 // 4, lengths[i] - 32)
    return groups
