"""Pictures from outside, made our own: decoded within caps, shrunk, encoded anew, so that no byte of theirs is passed on."""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import io
from concurrent.futures import ThreadPoolExecutor

from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.web.decode import decode
from megatron_mmsr1.search.web.fetch import IMAGES, Fetcher
from megatron_mmsr1.search.wire import MAX_IMAGE_BYTES
from megatron_mmsr1.trajectory import ToolStatus

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
