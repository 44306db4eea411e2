"""Encoded pictures from outside: decoded within caps, or refused."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

from PIL import Image, ImageOps, UnidentifiedImageError

from megatron_mmsr1.search.interfaces import SearchFailure
from megatron_mmsr1.search.requests import MAX_IMAGE_BYTES
from megatron_mmsr1.trajectory import ToolStatus

MAX_PIXELS = 32_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# What Pillow's decoders raise on hostile bytes; it has no common base class.
_DECODER_ERRORS = (
    *(UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, TypeError, KeyError),
    *(IndexError, OverflowError, MemoryError, ZeroDivisionError, AttributeError, RuntimeError, Image.DecompressionBombError),
)


def decode(data: bytes, *, draft: int | None = None) -> Image.Image:
    """The first frame as upright RGB, transparency on white.

    `draft`: a side length that is enough, so that a large JPEG is decoded at a fraction of its cost. Raises
    SearchFailure(refused) for what is no picture, is torn, or is past MAX_IMAGE_BYTES or MAX_PIXELS.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise SearchFailure(ToolStatus.REFUSED, f"the image has {len(data)} bytes; the limit is {MAX_IMAGE_BYTES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own pixel warning; the cap below is the rule
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise SearchFailure(ToolStatus.REFUSED, f"the image has {width}x{height} pixels; the limit is {MAX_PIXELS}")
            if draft is not None:
                image.draft("RGB", (draft, draft))
            image = ImageOps.exif_transpose(image)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                rgba = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            return image.convert("RGB")
    except _DECODER_ERRORS as e:
        raise SearchFailure(ToolStatus.REFUSED, f"the image cannot be decoded ({type(e).__name__})") from None
