"""Untrusted bytes to pixels: what is refused, and how odd modes become RGB."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_SOURCE_PIXELS = 64 * 1024 * 1024  # a decompression bomb above this; twice what a phone camera makes
# Decoders of what the web serves. Others (EPS would start an interpreter) are refused unopened. Pillow must have
# registered a decoder before it may be named, and a build may lack one.
Image.init()
_WEB = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
FORMATS = tuple(f for f in _WEB if f in Image.OPEN)

# What Pillow's decoders raise on damaged input, each in its own way.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


class ImageError(ValueError):
    """The bytes are no usable image; the message says why."""


def stored_size(data: bytes) -> tuple[int, int]:
    """(width, height) as the header says, before any rotation that EXIF asks for. Raises ImageError as `decode` does."""
    with _opened(data) as source:
        return source.size


def decode(data: bytes) -> Image.Image:
    """The pixels as an upright RGB image without metadata. Raises ImageError as `canonicalize` does."""
    with _opened(data) as source:
        source.load()
        return _rgb(ImageOps.exif_transpose(source))


@contextmanager
def _opened(data: bytes) -> Generator[Image.Image]:
    """The picture of these bytes, its pixels not yet read; whatever goes wrong inside the block is an ImageError."""
    if not data:
        raise ImageError("no bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as source:
            width, height = source.size
            if width * height > MAX_SOURCE_PIXELS:
                raise ImageError(f"{width}x{height} is more than {MAX_SOURCE_PIXELS} pixels")
            yield source
    except ImageError:
        raise
    except UnidentifiedImageError:  # its own words show the address of an object
        raise ImageError(f"cannot be decoded: {len(data)} bytes in none of the formats {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise ImageError(f"too large to decode: {e}") from e
    except _DAMAGE as e:
        raise ImageError(f"cannot be decoded: {e}") from e


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        # Pillow would clip sixteen bits to eight and paint most of the picture white.
        image = Image.fromarray((np.clip(np.asarray(image, dtype=np.int64), 0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", pixels.size, (255, 255, 255, 255)), pixels)
    rgb = image.convert("RGB")
    # Only pixels: gamma, profiles and comments must not reach the re-encoded file, or its hash.
    rgb.info = {}
    return rgb
