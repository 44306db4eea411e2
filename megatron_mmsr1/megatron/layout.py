"""Where each token of a pack stands in padded batches of runs of similar length, and which runs stand below which.

A run is a sequence, or a piece of several that `data/prefixes.py` has put into the pack once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass
class Packed(PackedSeqParams):
    """megatron-core's description of packed sequences (here: runs), plus their padded batches, worked out once for all layers.

    The batches lie end to end in S slots: `batches` holds (runs, longest) of each, `slots` int64 [T] the slot of each
    token, `gather` int64 [S] the token of each slot (any token, in padding). `below` holds, of each run with runs below it,
    (q, end of q, k, end of k): the rows q below it attend to all of its rows k too.
    """

    batches: list[tuple[int, int]] = field(default_factory=list)
    slots: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    gather: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    below: list[tuple[int, int, int, int]] = field(default_factory=list[tuple[int, int, int, int]])


def packed(lengths: list[int], parents: Sequence[int] = (), *, device: torch.device) -> Packed:
    """The layout of runs of these lengths (each at least 1), laid end to end. `parents`: the run above each, -1 for none, in
    depth-first order; () where all are sequences of their own."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    bounds = torch.from_numpy(starts.astype(np.int32)).to(device)
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
    return Packed(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=max(lengths),
        max_seqlen_kv=max(lengths),
        batches=batches,
        slots=torch.from_numpy(slots).to(device),
        gather=torch.from_numpy(gather).to(device),
        below=_below(starts.tolist(), parents),
    )


def _below(starts: list[int], parents: Sequence[int]) -> list[tuple[int, int, int, int]]:
    ends: dict[int, int] = {}  # of the rows below a run
    for i, parent in enumerate(parents):
        while parent >= 0:
            ends[parent] = starts[i + 1]
            parent = parents[parent]
    return [(starts[i + 1], end, starts[i], starts[i + 1]) for i, end in sorted(ends.items())]


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
