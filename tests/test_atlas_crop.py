"""Crop questions: their charge cannot be told at the model's picture size, and can from the part that the box cuts out."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from megatron_mmsr1.atlas.build import build
from megatron_mmsr1.atlas.canvas import CORNERS, corner_box, draw_canvas
from megatron_mmsr1.atlas.picture import COLOURS, SHAPES, Emblem, View, draw, png, random_emblem
from megatron_mmsr1.atlas.questions import questions
from megatron_mmsr1.atlas.spec import AtlasSpec
from megatron_mmsr1.atlas.world import make_world
from megatron_mmsr1.data.images import canonicalize
from megatron_mmsr1.tools.crop import WHOLE, cut

pytestmark = pytest.mark.long

SIZE = AtlasSpec().canvas_size
PIXELS = 56 * 56
CORNER = st.integers(0, len(CORNERS) - 1)
EMBLEM = st.integers(0, 10_000).map(lambda n: random_emblem(random.Random(n)))


def as_seen(data: bytes) -> np.ndarray:
    """[56, 56, 3]: what the model gets of a picture."""
    image = canonicalize(data, min_pixels=PIXELS, max_pixels=PIXELS)
    return np.asarray(Image.open(io.BytesIO(image.png)), dtype=np.int64)


def corner_of(data: bytes, corner: int) -> bytes:
    """As the tool cuts it out."""
    return cut(data, list(corner_box(corner)), (WHOLE, WHOLE))


def canvas(emblem: Emblem, corner: int) -> bytes:
    return png(draw_canvas(emblem, View(), corner, SIZE))


def test_boxes_are_written_in_round_numbers() -> None:
    """Middles at 1/8 and 7/8 of a side, 1/20 wide."""
    assert [corner_box(c) for c in range(4)] == [
        (100, 100, 150, 150),
        (850, 100, 900, 150),
        (100, 850, 150, 900),
        (850, 850, 900, 900),
    ]


@given(EMBLEM, CORNER)
def test_the_box_cuts_out_exactly_the_emblem(emblem: Emblem, corner: int) -> None:
    part = np.asarray(Image.open(io.BytesIO(corner_of(canvas(emblem, corner), corner))))
    assert np.array_equal(part, draw(emblem, View(), SIZE // 20))


@given(EMBLEM, CORNER)
def test_the_enlarged_part_looks_like_a_large_emblem(emblem: Emblem, corner: int) -> None:
    """Twice as large, so its edges are soft: the middle of the charge and an edge of the field have their colours."""
    centred = replace(emblem, x=0.0, y=0.0)
    seen = as_seen(corner_of(canvas(centred, corner), corner))
    for at, colour in (((28, 28), emblem.charge), ((28, 3), emblem.field)):
        assert np.abs(seen[at] - COLOURS[colour]).max() <= 12


@given(EMBLEM, st.sampled_from(sorted(COLOURS)), st.sampled_from(SHAPES), CORNER)
def test_the_charge_hardly_changes_what_the_model_sees(emblem: Emblem, charge: str, shape: str, corner: int) -> None:
    """Two small emblems of one field that differ in their charge differ within 5 pixels of the middle of their corner only, and
    by less than 0.2 of 255 levels over the picture.

    The charge covers at most (1.7 x 15 / 56)^2 = 0.21 of an emblem, which is 2.8 of the picture's 56 pixels wide. That is
    0.21 x 2.8^2 / 56^2 = 0.05 % of the picture, by at most 220 levels: 0.12. Bicubic sampling overshoots by less than half."""
    other = replace(emblem, charge=charge, shape=shape)
    a, b = as_seen(canvas(emblem, corner)), as_seen(canvas(other, corner))
    assert np.abs(a - b).mean() < 0.2
    y, x = (7 if corner < 2 else 49), (49 if corner % 2 else 7)
    differs = (a != b).any(-1)
    differs[y - 5 : y + 5, x - 5 : x + 5] = False
    assert not differs.any()


@given(EMBLEM, CORNER)
def test_the_corner_shows(emblem: Emblem, corner: int) -> None:
    """A plate of 7 x 7 white pixels, less the emblem's 2.8 x 2.8: only its corner is not grey."""
    seen = as_seen(canvas(emblem, corner))
    bright = np.all(seen > 220, axis=-1)
    quadrants = [bright[y : y + 28, x : x + 28].sum() for y in (0, 28) for x in (0, 28)]
    assert quadrants[corner] >= 20
    assert sum(quadrants) == quadrants[corner]


def test_a_world_asks_crop_questions_with_their_pictures(tmp_path: Path) -> None:
    spec = AtlasSpec(entities=24, known=4, train_questions=120, heldout_questions=60, noise_pages=10)
    world = build(spec, tmp_path, model=False)
    by_id = {e.id: e for e in world.entities}
    rows = pq.read_table(tmp_path / "heldout.parquet").to_pylist()
    crop = [r for r in rows if r["extra_info"]["kind"] == "crop"]
    assert len(crop) == 10
    assert {r["category"] for r in crop} == {"crop_required"}
    assert {r["extra_info"]["attribute"] for r in crop} <= {"charge colour", "charge shape"}
    for r in crop:
        data, corner = r["images"][0]["bytes"], r["extra_info"]["corner"]
        assert Image.open(io.BytesIO(data)).size == (SIZE, SIZE)
        # The view turns, shifts and speckles: the colours of most of its pixels are the emblem's.
        part = np.asarray(Image.open(io.BytesIO(corner_of(data, corner))))
        e = by_id[r["extra_info"]["entity"]].emblem
        assert (part == COLOURS[e.field]).all(-1).mean() > 0.3
        assert (part == COLOURS[e.charge]).all(-1).mean() > 0.05
    others = [r for r in rows if r["extra_info"]["kind"] != "crop"]
    assert {r["extra_info"]["corner"] for r in others} == {-1}
    assert {Image.open(io.BytesIO(r["images"][0]["bytes"])).size for r in others} == {(56, 56)}


def test_every_corner_is_asked_about() -> None:
    asked = [q.corner for q in questions(make_world(AtlasSpec()), "train") if q.kind == "crop"]
    assert [asked.count(c) / len(asked) for c in range(4)] == [pytest.approx(0.25, abs=0.06)] * 4
