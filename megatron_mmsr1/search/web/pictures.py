"""Pictures from outside: decoded within caps, or refused; then encoded anew, so that no byte of theirs is passed on."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import functools
import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

from PIL import Image, ImageOps, UnidentifiedImageError

from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.fetch import IMAGES, Fetcher
from megatron_mmsr1.search.wire import MAX_IMAGE_BYTES
from megatron_mmsr1.trajectory import ToolStatus

MAX_PIXELS = 32_000_000
MAX_SCANS = 64  # of a JPEG; real ones have about ten, and each costs a pass over every pixel, however few bytes it has
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_START_OF_SCAN = b"\xff\xda"
# What Pillow's decoders raise on hostile bytes; it has no common base class.
_DECODER_ERRORS = (
    *(UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, TypeError, KeyError),
    *(IndexError, OverflowError, MemoryError, ZeroDivisionError, AttributeError, RuntimeError, Image.DecompressionBombError),
)


def decode(data: bytes, *, draft: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame as upright RGB, transparency on white.

    `draft`: a side length that is enough, so that a large JPEG is decoded at a fraction of its cost. Raises
    SearchFailure(refused) for what is no picture, is torn, or is past MAX_IMAGE_BYTES, `max_pixels` or MAX_SCANS.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise SearchFailure(ToolStatus.REFUSED, f"the image has {len(data)} bytes; the limit is {MAX_IMAGE_BYTES}")
    if data.startswith(b"RIFF"):
        _check(_webp_size(data), max_pixels)  # Pillow asks for a WebP's whole canvas before it tells its size
    if data.startswith(b"\xff\xd8") and data.count(_START_OF_SCAN) > MAX_SCANS:
        raise SearchFailure(ToolStatus.REFUSED, f"the image has more than {MAX_SCANS} scans")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own pixel warning; the cap below is the rule
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check(image.size, max_pixels)
            if draft is not None:
                image.draft("RGB", (draft, draft))
            image.load()
            with contextlib.suppress(*_DECODER_ERRORS):  # torn metadata is common, and no reason to refuse the picture
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                seen = image if image.mode == "RGBA" else image.convert("RGBA")
                image = Image.new("RGB", seen.size, "white")
                image.paste(seen, mask=seen)
            return image if image.mode == "RGB" else image.convert("RGB")
    except _DECODER_ERRORS as e:
        raise SearchFailure(ToolStatus.REFUSED, f"the image cannot be decoded ({type(e).__name__})") from None


def _check(size: tuple[int, int], limit: int) -> None:
    width, height = size
    if width * height > limit:
        raise SearchFailure(ToolStatus.REFUSED, f"the image has {width}x{height} pixels; the limit is {limit}")


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) as the first chunk has it; (0, 0) where that is no WebP's, which the decoder then says.

    https://developers.google.com/speed/webp/docs/riff_container
    """
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return 0, 0
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return 0, 0


JPEG_QUALITY = 90
FEW_COLOURS = 256  # up to here it is a drawing: PNG keeps it sharp, and small
MAX_ASPECT = 100  # vision models refuse pictures that are all length and no width


async def fetch_thumbnail(fetcher: Fetcher, url: str, max_side: int) -> bytes:
    """The picture behind a URL as JPEG or PNG, its longest side at most `max_side`.

    A `data:` URI is decoded, never fetched. Raises what `Fetcher.get` and `reencode` raise.
    """
    data = from_data_uri(url) if url[:5].lower() == "data:" else (await fetcher.get(url, IMAGES)).body
    return await asyncio.get_running_loop().run_in_executor(_decoders(), reencode, data, max_side)


def reencode(data: bytes, max_side: int) -> bytes:
    """An encoded picture, encoded anew: first frame, upright, on white, without metadata; the same bytes every time.

    PNG for up to FEW_COLOURS colours, else JPEG. Raises SearchFailure(refused) for what `decode` refuses, and past MAX_ASPECT.
    """
    image = decode(data, draft=max_side)
    image.thumbnail((max_side, max_side))
    image.info.clear()
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise SearchFailure(ToolStatus.REFUSED, f"the image of {image.width}x{image.height} is longer than it may be")
    out = io.BytesIO()
    if image.getcolors(FEW_COLOURS) is not None:
        image.save(out, "PNG", optimize=True)
    else:
        image.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def from_data_uri(uri: str) -> bytes:
    """The bytes of a base64 `data:` URI, as vendors put thumbnails into their answers. Raises SearchFailure(refused)."""
    head, _, payload = uri.partition(",")
    if not head.lower().endswith(";base64") or len(payload) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise SearchFailure(ToolStatus.REFUSED, "a data: URI that is not base64, or is too long")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise SearchFailure(ToolStatus.REFUSED, "a data: URI whose base64 is broken") from None


@functools.cache
def _decoders() -> ThreadPoolExecutor:
    """Two: a picture at the pixel cap takes a quarter of a gigabyte while it is decoded."""
    return ThreadPoolExecutor(2, "thumbnails")
