"""Positions against the reference implementation, over whole multi-image conversations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.data.mrope import mrope_positions

PAD = 7
grids = st.tuples(st.just(1), st.integers(1, 6).map(lambda n: 2 * n), st.integers(1, 6).map(lambda n: 2 * n))
# A conversation: text of any length, then (image, at least one token of text) any number of times.
conversations = st.tuples(st.integers(0, 9), st.lists(st.tuples(grids, st.integers(1, 9)), max_size=6))


def models() -> list[Any]:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

    return [Qwen2_5_VLModel, Qwen3VLModel]


def reference(ids: list[int], grid: list[tuple[int, int, int]], Model: Any) -> np.ndarray:
    vision = SimpleNamespace(spatial_merge_size=2, tokens_per_second=4)
    model: Any = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    model.get_vision_position_ids = lambda *a, **k: Model.get_vision_position_ids(model, *a, **k)
    row: Any = torch.tensor([ids])
    thw: Any = torch.tensor(grid) if grid else None
    positions, _ = Model.get_rope_index(model, row, (row == PAD).int(), thw, attention_mask=torch.ones_like(row))
    return positions[:, 0].numpy()


@given(conversations)
def test_equal_to_transformers(conversation) -> None:
    lead, parts = conversation
    ids = [1] * lead
    for (t, h, w), text in parts:
        ids += [PAD] * (t * h * w // 4) + [2] * text
    if not ids:
        return
    grid = [g for g, _ in parts]
    ours = mrope_positions(ids, PAD, grid)
    assert ours.dtype == np.int64
    for model in models():
        assert np.array_equal(ours, reference(ids, grid, model))


def test_worked_example() -> None:
    # Two words, an image of 2x3 merged patches, two words: it starts at 2, and text goes on at 2 + max(2, 3) = 5.
    ids = [1, 1, *[PAD] * 6, 1, 1]
    assert mrope_positions(ids, PAD, [(1, 4, 6)]).tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]


def test_text_alone_counts_up_and_nothing_is_empty() -> None:
    assert mrope_positions([1, 2, 3], PAD, []).tolist() == [[0, 1, 2]] * 3
    assert mrope_positions([], PAD, []).shape == (3, 0)


@pytest.mark.parametrize(
    ("ids", "grid"),
    [
        ([1, PAD, 1], []),  # a pad without an image
        ([1, 1], [(1, 2, 2)]),  # an image without a pad
        ([PAD, 1], [(1, 2, 4)]),  # too short a run
        ([PAD, PAD, 1], [(1, 2, 2)]),  # too long a run
        ([PAD, 1, PAD], [(1, 2, 4)]),  # a torn run
    ],
)
def test_pads_that_do_not_match_are_refused(ids: list[int], grid: list[tuple[int, int, int]]) -> None:
    with pytest.raises(ValueError, match="pads"):
        mrope_positions(ids, PAD, grid)
