"""Multimodal rotary positions: three rows (time, height, width) over a whole multi-image conversation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mrope_positions(
    token_ids: Sequence[int] | np.ndarray, image_pad_id: int, grids: Sequence[tuple[int, int, int]], merge: int = 2
) -> np.ndarray:
    """Positions int64 [3, T] of Qwen2-VL, Qwen2.5-VL and Qwen3-VL (arXiv 2409.12191, section 2.1).

    Text counts up alike in all rows. An image of `grid` (t, h, w) patches stands as t*h*w/merge**2 pads; they take a
    time, a row and a column offset from the position where the image begins, and text goes on after the larger of its
    two sides. Equal to transformers' `Qwen2_5_VLModel.get_rope_index` wherever images are set apart by at least one
    token.

    Raises ValueError unless the runs of `image_pad_id` match `grids` in number and length.
    """
    ids = np.asarray(token_ids, dtype=np.int64)
    is_pad = ids == image_pad_id
    positions = np.empty((3, len(ids)), dtype=np.int64)
    at, position = 0, 0
    pads = np.flatnonzero(is_pad)
    seen = 0
    for n, (t, h, w) in enumerate(grids):
        size = t * (h // merge) * (w // merge)
        if seen >= len(pads):
            raise ValueError(f"{len(grids)} images but pads for {n} of them")
        start = int(pads[seen])
        if size < 1 or start + size > len(ids) or not is_pad[start : start + size].all():
            raise ValueError(f"image {n} needs a run of {size} pads at token {start}")
        positions[:, at:start] = position + np.arange(start - at)
        position += start - at
        offsets = np.indices((t, h // merge, w // merge), dtype=np.int64).reshape(3, -1)
        positions[:, start : start + size] = position + offsets
        position += max(h, w) // merge
        at, seen = start + size, seen + size
    if seen != len(pads):
        raise ValueError(f"{len(pads) - seen} pads belong to none of {len(grids)} images")
    positions[:, at:] = position + np.arange(len(ids) - at)
    return positions
