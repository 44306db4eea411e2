"""Which tokens of a pack each of several ranks holds, so that all have as many tokens and as much causal attention.

Each run of a pack is cut into 2n equal chunks for n ranks, of which rank r holds chunk r and chunk 2n - 1 - r: the early one of
few keys and the late one of many. transformer-engine's attention expects the same split of packed sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def multiple(ranks: int) -> int:
    """What the length of every run is padded to a multiple of."""
    return 2 * ranks if ranks > 1 else 1


def chunks(length: int, ranks: int, rank: int) -> list[tuple[int, int]]:
    """The places [start, end) in a run of `length` that `rank` holds, the early chunk first; all of them for one rank.
    Raises ValueError for a length that does not divide into 2 * ranks chunks."""
    if length % multiple(ranks):
        raise ValueError(f"a run of {length} tokens does not divide over {ranks} ranks in chunks of two each")
    if ranks == 1:
        return [(0, length)]
    size = length // (2 * ranks)
    return [(at * size, (at + 1) * size) for at in (rank, 2 * ranks - 1 - rank)]


def rows(lengths: Sequence[int], ranks: int, rank: int) -> np.ndarray:
    """Of a pack of runs of these lengths, laid end to end, the rows that `rank` holds: int64 [sum(lengths) / ranks], ascending.
    Raises ValueError as `chunks`."""
    starts = np.cumsum([0, *lengths])
    held = [
        np.arange(start + a, start + b, dtype=np.int64)
        for start, length in zip(starts, lengths, strict=False)
        for a, b in chunks(length, ranks, rank)
    ]
    return np.concatenate(held) if held else np.empty(0, dtype=np.int64)
