"""A task as a picture, written as in a column: the first operand above, the operator and the second operand below.

    . 7
    + 4

Each glyph fills one quadrant: at 56 x 56 pixels an image token of the model. Ink and paper are far apart in brightness.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from megatron_mmsr1.atlas.picture import COLOURS, View, coordinates, speckle
from megatron_mmsr1.maths.tasks import Task

INKS = ("black", "blue", "purple", "red")
PAPERS = ("white", "yellow")
CELL = 4.4  # pixels of a 56-pixel picture: a glyph is 13 x 22 of the 28 of its quadrant
# Rows of three cells, from the top.
GLYPHS = {
    "0": ("###", "#.#", "#.#", "#.#", "###"),
    "1": (".#.", "##.", ".#.", ".#.", "###"),
    "2": ("###", "..#", "###", "#..", "###"),
    "3": ("###", "..#", ".##", "..#", "###"),
    "4": ("#.#", "#.#", "###", "..#", "..#"),
    "5": ("###", "#..", "###", "..#", "###"),
    "6": ("###", "#..", "###", "#.#", "###"),
    "7": ("###", "..#", "..#", ".#.", ".#."),
    "8": ("###", "#.#", "###", "#.#", "###"),
    "9": ("###", "#.#", "###", "..#", "###"),
    "+": ("...", ".#.", "###", ".#.", "..."),
    "-": ("...", "...", "###", "...", "..."),
    "x": ("...", "#.#", ".#.", "#.#", "..."),
}


@dataclass(frozen=True, slots=True)
class Look:
    """Colours, and by how many pixels of a 56-pixel picture each glyph is off the middle of its quadrant."""

    ink: str = "black"
    paper: str = "white"
    x: float = 0.0
    y: float = 0.0


def random_look(rng: random.Random) -> Look:
    return Look(rng.choice(INKS), rng.choice(PAPERS), rng.uniform(-2, 2), rng.uniform(-1, 1))


def draw_task(task: Task, look: Look, view: View, size: int = 56) -> np.ndarray:
    """The picture: uint8 [size, size, 3]."""
    x, y = coordinates(view, size)
    inked = np.zeros((size, size), bool)
    for glyph, right, below in ((str(task.left), 1, -1), (task.operator, -1, 1), (str(task.right), 1, 1)):
        column = np.floor((x - 14 * right - look.x) / CELL + 1.5).astype(int)
        row = np.floor((y - 14 * below - look.y) / CELL + 2.5).astype(int)
        cells = np.array([[c == "#" for c in line] for line in GLYPHS[glyph]])
        inside = (column >= 0) & (column < 3) & (row >= 0) & (row < 5)
        inked[inside] |= cells[row[inside], column[inside]]
    out = np.empty((size, size, 3), np.uint8)
    out[:] = COLOURS[look.paper]
    out[inked] = COLOURS[look.ink]
    speckle(out, view)
    return out
