"""Emblems: a field, a charge in the middle and a dot in each corner, drawn by numpy, seen in varied views."""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from megatron_mmsr1.atlas.spec import Views

# Far apart in RGB, so that a colour stays itself under speckles and in a 14-pixel patch that is cut by an edge.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (200, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 60, 200),
    "yellow": (235, 215, 40),
    "white": (240, 240, 240),
    "black": (20, 20, 20),
    "purple": (130, 40, 150),
    "orange": (240, 130, 20),
}
# All fill the middle: the charge's colour is there whatever its shape.
SHAPES = ("square", "diamond", "cross", "bar")


@dataclass(frozen=True, slots=True)
class Emblem:
    """What a picture shows. Lengths are pixels of a 56-pixel picture, positions count from its middle."""

    field: str
    charge: str
    shape: str
    dots: tuple[str, str, str, str]  # top left, top right, bottom left, bottom right
    size: float
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at an emblem: degrees, zoom factor, shift in pixels of a 56-pixel picture, and the speckles."""

    rotation: float = 0.0
    zoom: float = 1.0
    dx: float = 0.0
    dy: float = 0.0
    noise: float = 0.0
    noise_seed: int = 0


def random_emblem(rng: random.Random) -> Emblem:
    field, charge = rng.sample(list(COLOURS), 2)
    a, b, c, d = rng.choices(list(COLOURS), k=4)
    # 15 px and 2 px keep the largest charge clear of the dots.
    size, x, y = rng.uniform(12, 15), rng.uniform(-2, 2), rng.uniform(-2, 2)
    return Emblem(field, charge, rng.choice(SHAPES), (a, b, c, d), size, x, y)


def random_view(rng: random.Random, views: Views) -> View:
    cut = rng.uniform(0, views.crop)
    reach = 28 * cut / 2
    return View(
        rotation=rng.uniform(-views.rotation, views.rotation),
        zoom=1 + cut / 2,
        dx=rng.uniform(-reach, reach),
        dy=rng.uniform(-reach, reach),
        noise=views.noise,
        noise_seed=rng.getrandbits(32),
    )


def draw(emblem: Emblem, view: View = View(), size: int = 56) -> np.ndarray:
    """The picture: uint8 [size, size, 3]."""
    x, y = coordinates(view, size)
    out = np.empty((size, size, 3), np.uint8)
    out[:] = COLOURS[emblem.field]
    out[_charge(emblem, np.abs(x - emblem.x), np.abs(y - emblem.y))] = COLOURS[emblem.charge]
    for colour, (cx, cy) in zip(emblem.dots, ((-21, -21), (21, -21), (-21, 21), (21, 21)), strict=True):
        out[(np.abs(x - cx) < 3.5) & (np.abs(y - cy) < 3.5)] = COLOURS[colour]
    speckle(out, view)
    return out


def coordinates(view: View, size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y, float64 [size, size]: where each pixel lies on what is looked at, from its middle, in pixels of a 56-pixel
    picture."""
    at = (np.arange(size, dtype=np.float64) + 0.5) * (56 / size) - 28
    px, py = (at[None, :] - view.dx) / view.zoom, (at[:, None] - view.dy) / view.zoom
    cos, sin = math.cos(math.radians(view.rotation)), math.sin(math.radians(view.rotation))
    return cos * px + sin * py, cos * py - sin * px


def speckle(picture: np.ndarray, view: View) -> None:
    """Put the view's speckles on a picture, uint8 [size, size, 3], in place."""
    if view.noise:
        rng = np.random.default_rng(view.noise_seed)
        speckled = rng.random(picture.shape[:2]) < view.noise
        picture[speckled] = rng.integers(0, 256, (int(speckled.sum()), 3), dtype=np.uint8)


def _charge(emblem: Emblem, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """bool [size, size]: the pixels of the charge, from the distances to its middle."""
    r = emblem.size
    if emblem.shape == "square":
        return (dx < 0.85 * r) & (dy < 0.85 * r)
    if emblem.shape == "diamond":
        return dx + dy < 1.15 * r
    if emblem.shape == "bar":
        return (dx < 1.35 * r) & (dy < 0.5 * r)
    return ((dx < 0.4 * r) & (dy < 1.15 * r)) | ((dy < 0.4 * r) & (dx < 1.15 * r))


def png(pixels: np.ndarray) -> bytes:
    """Losslessly, and the same bytes every time."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
