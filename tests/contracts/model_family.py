"""What data, rollouts and trainer rely on in a model family. Run your own through `check`; it needs no GPU and no weights."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from megatron_mmsr1.data.images import ImageError, canonicalize, pixel_values
from megatron_mmsr1.models import Family
from megatron_mmsr1.protocol import clean

LIMITS = {"min_pixels": 4 * 28 * 28, "max_pixels": 64 * 28 * 28}
SIZES = [(56, 56), (1, 1), (90, 31), (640, 480), (37, 1200), (1000, 999)]
PAD, TEXT = 7, 1


def check(family: Family, config: dict[str, Any] | None = None) -> None:
    """All of the light rules. `config` is a checkpoint's config.json, if it says patch sizes."""
    tokens_are_distinct(family)
    picture_sizes_settle(family, config)
    pictures_become_patches(family, config)
    positions_fit_the_tokens(family, config)
    positions_of_a_prefix_are_its_prefix(family, config)


def tokens_are_distinct(family: Family) -> None:
    """A pad must not be a mark, nor the end of a turn: the trainer's view is read off the ids alone. None of them may be
    spoken by a page or a question."""
    t = family.tokens
    everything = [*t.vision, t.turn_end]
    assert all(everything), f"{family.name}: an empty token"
    assert len(set(everything)) == len(everything), f"{family.name}: one token has two meanings: {everything}"
    assert t.picture.count(t.picture_pad) == 1, f"{family.name}: the engine's view shows one pad a picture, not {t.picture}"
    for token in everything:
        said = clean(f"a {token} b", t.tags)
        assert token not in said, f"{family.name}: {token} written on a web page would speak; use <|name|> or <name>"
    assert family.architectures, f"{family.name} answers to no architecture"


def picture_sizes_settle(family: Family, config: dict[str, Any] | None = None) -> None:
    """What the rule made of a picture, it leaves alone; both sides are whole tokens, the pixel count is within the limits."""
    rule = family.picture_rule(config or {})
    for width, height in SIZES:
        h, w = rule.resize(height, width, **LIMITS)
        for _ in range(8):
            h, w = rule.resize(h, w, **LIMITS)
        assert rule.resize(h, w, **LIMITS) == (h, w), f"{family.name}: {width}x{height} never settles"
        assert h % rule.factor == w % rule.factor == 0, f"{family.name}: {w}x{h} is no multiple of {rule.factor}"
        assert h * w <= LIMITS["max_pixels"], f"{family.name}: {w}x{h} is above max_pixels"
    with pytest.raises(ImageError):
        rule.resize(0, 5, **LIMITS)


def pictures_become_patches(family: Family, config: dict[str, Any] | None = None) -> None:
    """As many rows as the grid has patches, as many tokens as `tokens` says, values at (x - mean) / deviation."""
    rule = family.picture_rule(config or {})
    for shade in (0, 255):
        out = io.BytesIO()
        Image.new("RGB", (3 * rule.factor, 2 * rule.factor), (shade,) * 3).save(out, "PNG")
        image = canonicalize(out.getvalue(), min_pixels=rule.factor**2, max_pixels=64 * rule.factor**2, rule=rule)
        values = pixel_values(image.png, rule)
        shape = (int(np.prod(image.grid_thw)), 3 * rule.temporal * rule.patch**2)
        assert values.shape == shape, f"{family.name}: {values.shape} patches, not {shape}"
        assert rule.tokens(image.grid_thw) == 6, f"{family.name}: {rule.tokens(image.grid_thw)} tokens for 3 x 2 merged patches"
        wanted = [(shade / 255 - m) / d for m, d in zip(rule.mean, rule.deviation, strict=True)]
        found = values.reshape(len(values), 3, -1)
        assert np.allclose(found, np.array(wanted)[None, :, None], atol=1e-5), f"{family.name}: not mean and deviation"


def _conversation(merge: int) -> tuple[list[int], list[tuple[int, int, int]]]:
    grids = [(1, 2 * merge, 3 * merge), (1, merge, merge)]
    return [TEXT] * 3 + [PAD] * 6 + [TEXT] * 2 + [PAD] + [TEXT] * 4, grids


def positions_fit_the_tokens(family: Family, config: dict[str, Any] | None = None) -> None:
    """int64 [3, T]; text alone counts up from 0 in all rows; nothing goes back behind what an earlier picture began; pads that
    do not match the pictures are refused."""
    merge = family.picture_rule(config or {}).merge
    text = family.positions([TEXT] * 5, PAD, [], merge)
    assert text.shape == (3, 5) and text.dtype == np.int64, f"{family.name}: {text.dtype} {text.shape}"
    assert (text == np.arange(5)).all(), f"{family.name}: text does not count up from 0"
    ids, grids = _conversation(merge)
    found = family.positions(ids, PAD, grids, merge)
    assert found.shape == (3, len(ids)) and (found >= 0).all(), f"{family.name}: {found.shape}"
    assert (found[:, -4:].max(1) == found[0, -1]).all(), f"{family.name}: the rows differ in the text after pictures"
    for wrong_ids, wrong_grids in ((ids, grids[:1]), (ids[:4], grids[:1]), ([TEXT], grids)):
        with pytest.raises(ValueError):
            family.positions(wrong_ids, PAD, wrong_grids, merge)


def positions_of_a_prefix_are_its_prefix(family: Family, config: dict[str, Any] | None = None) -> None:
    """Turn by turn an engine works from what it has cached; the trainer sees the whole conversation at once."""
    merge = family.picture_rule(config or {}).merge
    ids, grids = _conversation(merge)
    whole = family.positions(ids, PAD, grids, merge)
    for end, seen in ((3, 0), (9, 1), (11, 1), (12, 2), (len(ids), 2)):
        part = family.positions(ids[:end], PAD, grids[:seen], merge)
        assert (part == whole[:, :end]).all(), f"{family.name}: the first {end} tokens move when more follow"
