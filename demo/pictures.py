"""Pictures small enough for a page, as data: URIs: the browser asks nobody for them."""

from __future__ import annotations

import base64
import io
from functools import lru_cache

from demo.escape import esc
from megatron_mmsr1.data.decode import ImageError, decode

LARGE, SMALL = 320, 160  # pixels of the longest side: of a question's picture, of a search result's


@lru_cache(maxsize=512)
def uri(data: bytes, limit: int) -> str:
    """The picture as a data: URI, drawn anew by us and at most `limit` pixels a side. Raises ImageError."""
    image = decode(data)
    image.thumbnail((limit, limit))
    out = io.BytesIO()
    small = image.width * image.height <= 128 * 128  # an emblem keeps its edges, a photograph is worth a JPEG
    image.convert("RGB").save(out, "PNG" if small else "JPEG", **({} if small else {"quality": 82}))
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(out.getvalue()).decode()}"


def img(data: bytes | None, alt: str, limit: int = SMALL) -> str:
    """An <img>, or a word where there is no picture that could be shown."""
    if data is None:
        return '<span class="nopicture">no picture</span>'
    try:
        source = uri(data, limit)
    except ImageError:
        return '<span class="nopicture">unreadable picture</span>'
    tiny = ' class="tiny"' if source.startswith("data:image/png") else ""
    return f'<img src="{source}" alt="{esc(alt)}"{tiny}>'
