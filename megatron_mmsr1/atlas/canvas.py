"""Pictures of `crop` questions: an emblem too small to read, on a white plate in one corner of a large grey canvas.

At the model's picture size (56 x 56) the plate is 7 pixels wide and tells where to look; the emblem is 2.8 pixels wide, and
its charge cannot be told. Cut out of the original and enlarged, it is an emblem like any other.
"""

from __future__ import annotations

import numpy as np

from megatron_mmsr1.atlas.picture import Emblem, View, draw

CORNERS = ("top left", "top right", "bottom left", "bottom right")
# Parts of the canvas' side. Boxes are whole thousandths: the middle of a corner is 1/8 from its edges.
EMBLEM, PLATE, MIDDLE = 1 / 20, 1 / 8, 1 / 8
GREY, WHITE = 128, 240

Box = tuple[int, int, int, int]


def corner_box(corner: int) -> Box:
    """The box of the emblem in that corner (an index of `CORNERS`): x1, y1, x2, y2 in thousandths of the picture."""
    x, y = _middle(corner)
    half = EMBLEM / 2
    x1, y1, x2, y2 = (round(1000 * v) for v in (x - half, y - half, x + half, y + half))
    return x1, y1, x2, y2


def draw_canvas(emblem: Emblem, view: View, corner: int, size: int) -> np.ndarray:
    """The picture: uint8 [size, size, 3]. `size` is a multiple of `spec.CANVAS_MULTIPLE`."""
    out = np.full((size, size, 3), GREY, np.uint8)
    out[_square(corner, PLATE, size)] = WHITE
    out[_square(corner, EMBLEM, size)] = draw(emblem, view, round(size * EMBLEM))
    return out


def _middle(corner: int) -> tuple[float, float]:
    return (1 - MIDDLE if corner % 2 else MIDDLE), (1 - MIDDLE if corner // 2 else MIDDLE)


def _square(corner: int, side: float, size: int) -> tuple[slice, slice]:
    """Rows and columns of a square of that side (a part of the canvas') around a corner's middle."""
    x, y = (round(size * (v - side / 2)) for v in _middle(corner))
    pixels = round(size * side)
    return slice(y, y + pixels), slice(x, x + pixels)
