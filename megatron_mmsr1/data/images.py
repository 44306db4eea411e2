"""One canonical form of an image, so that engine and trainer see the same pixels.

An image is decoded and resized here once, by the model family's rule, and re-encoded losslessly. A canonical image
already satisfies that rule, so the image processor of an engine with the same pixel limits resizes nothing.
"""

from __future__ import annotations

import hashlib
import io
import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from megatron_mmsr1.data.decode import ImageError, decode
from megatron_mmsr1.data.resize import MAX_ASPECT, smart_resize
from megatron_mmsr1.data.store import ImageStore
from megatron_mmsr1.models.base import PictureRule

__all__ = [
    "DEFAULT_RULE",
    "MAX_ASPECT",
    "CanonicalImage",
    "ImageError",
    "ImageStore",
    "canonical_size",
    "canonicalize",
    "pixel_values",
    "smart_resize",
]

# 14-pixel patches, two by two a token, CLIP's statistics: what a caller gets who names no family's rule.
DEFAULT_RULE = PictureRule()

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(slots=True, frozen=True)
class CanonicalImage:
    """An RGB PNG whose sides are multiples of patch x merge.

    `sha256` is the hex digest of `png`, `grid_thw` counts patches (time, height, width), `size` is (width, height) in
    pixels.
    """

    png: bytes
    sha256: str
    grid_thw: tuple[int, int, int]
    size: tuple[int, int]


def canonical_size(height: int, width: int, rule: PictureRule, *, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) that `rule.resize` maps to itself, reached by applying it from here.

    One application is enough for all but slivers at the limits, which an engine would otherwise resize a second time.
    """
    size = (height, width)
    for _ in range(8):
        new = rule.resize(*size, min_pixels=min_pixels, max_pixels=max_pixels)
        if new == size:
            return size
        size = new
    raise ImageError(f"no size for {width}x{height} between {min_pixels} and {max_pixels} pixels in steps of {rule.factor}")


def canonicalize(data: bytes, *, min_pixels: int, max_pixels: int, rule: PictureRule = DEFAULT_RULE) -> CanonicalImage:
    """Decode any image of the web into its canonical form; a canonical image comes back byte for byte.

    The first frame of an animation counts, EXIF rotation is applied, transparency lies on white. Raises ImageError for
    bytes that are no image, truncated, larger than `MAX_SOURCE_PIXELS` or thinner than the rule's `max_aspect`.
    """
    image = decode(data)
    height, width = canonical_size(image.height, image.width, rule, min_pixels=min_pixels, max_pixels=max_pixels)
    png = data
    if image.size != (width, height) or not _plain_png(data):
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        out = io.BytesIO()
        # Photographs hardly shrink at higher levels, which take several times longer.
        image.save(out, "PNG", compress_level=1)
        png = out.getvalue()
    grid = (1, height // rule.patch, width // rule.patch)
    return CanonicalImage(png, hashlib.sha256(png).hexdigest(), grid, (width, height))


def _plain_png(data: bytes) -> bool:
    """Whether these bytes are an 8-bit RGB PNG of nothing but pixels, that is, what `canonicalize` writes."""
    if not data.startswith(_PNG_SIGNATURE):
        return False
    at = len(_PNG_SIGNATURE)
    kinds: list[bytes] = []
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IHDR" and data[at + 16 : at + 21] != b"\x08\x02\x00\x00\x00":
            return False
        kinds.append(kind)
        at += 12 + length
    return at == len(data) and kinds[0] == b"IHDR" and kinds[-1] == b"IEND" and set(kinds[1:-1]) == {b"IDAT"}


def pixel_values(png: bytes, rule: PictureRule = DEFAULT_RULE) -> np.ndarray:
    """The vision tower's input for a canonical image: float32 [t*h*w, 3*temporal*patch*patch], t = 1.

    Patches are ordered merge block by merge block, a still image is repeated `temporal` times; equal to transformers'
    `Qwen2VLImageProcessor(do_resize=False)`. Raises ImageError if the sides are not multiples of patch x merge.
    """
    patch, merge, temporal = rule.patch, rule.merge, rule.temporal
    image = np.asarray(decode(png))  # [H, W, 3] uint8
    height, width, _ = image.shape
    if height % (patch * merge) or width % (patch * merge):
        raise ImageError(f"{width}x{height} is not canonical: sides must be multiples of {patch * merge}")
    rows, cols = height // (patch * merge), width // (patch * merge)
    blocks = image.reshape(rows, merge, patch, cols, merge, patch, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    patches = np.ascontiguousarray(blocks).reshape(-1, 3, 1, patch * patch)
    values = np.empty((len(patches), 3, temporal, patch * patch), dtype=np.float32)
    for channel, table in enumerate(_tables(rule.mean, rule.deviation)):
        values[:, channel] = table.take(patches[:, channel])
    return values.reshape(len(values), -1)


@lru_cache(maxsize=8)
def _tables(mean: tuple[float, ...], deviation: tuple[float, ...]) -> np.ndarray:
    """[3, 256] float32: the normalised value of each byte of each channel. A look-up is faster than arithmetic on floats."""
    return np.stack([(np.arange(256) / 255 - m) / s for m, s in zip(mean, deviation, strict=True)]).astype(np.float32)
