"""Image searches that others recorded: what their files hold, as titles and pictures by data id.

Two forms are known, both a mapping from a row's `data_id` to its results, best first:

- FVQA's release (dataset lmms-lab/FVQA: `fvqa_train_image_search_results_cache.pkl` and `..._test_...`), a pickle:
  `{"tool_returned_web_title_list": [title], "tool_returned_images_urls": [URL of a thumbnail, or a pickled PIL image]}`.
  Its files were not at hand when this was written: the form is as public code that reads them has it.
- DeepEyesV2's version of it (dataset honglyhly/DeepEyesV2_Search_Cache), JSON:
  `{"tool_returned_web_title": [title], "cached_images_path": [path of a picture file, or null]}`.

A pickle is never run (`data.safe_pickle`); a PIL image in it is taken from the pixels that were written for it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import orjson
from PIL import Image

from megatron_mmsr1.data.safe_pickle import Inert, load
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.web.pictures import MAX_PIXELS
from megatron_mmsr1.untyped import is_dict, is_list, is_tuple

TITLES = ("tool_returned_web_title_list", "tool_returned_web_title")
PICTURES = ("tool_returned_images_urls", "cached_images_path")
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
PIL_IMAGES = frozenset(
    ["PIL.Image.Image", "PIL.BmpImagePlugin.DibImageFile"]
    + [f"PIL.{n}ImagePlugin.{n}ImageFile" for n in ("Jpeg", "Png", "WebP", "Gif", "Bmp", "Tiff", "Mpo", "Ico", "Avif")]
)
# What stands in the metadata of a PIL image; read over.
_METADATA = frozenset(["PIL.PngImagePlugin.iTXt", "PIL.TiffImagePlugin.IFDRational", "fractions.Fraction"])


@dataclass(slots=True, frozen=True)
class Found:
    """One recorded result. `picture`: encoded bytes, an http(s) URL, a path of a file, or None where there was none.

    `lost`: why a picture that was recorded cannot be had.
    """

    title: str
    picture: bytes | str | None = None
    lost: str = ""


def read(source: Path) -> dict[str, list[Found]]:
    """Results by data id. UsageError that names the entry if the file is of another form, or a pickle that does more."""
    try:
        with source.open("rb") as f:
            start = f.read(64).lstrip()
    except OSError as e:
        raise UsageError(f"{source} cannot be read: {e.strerror}") from None
    if start.startswith((b"{", b"[")):
        try:
            held: Any = orjson.loads(source.read_bytes())
        except orjson.JSONDecodeError as e:
            raise UsageError(f"{source}: not valid JSON: {e}") from None
    else:
        held = load(source, PIL_IMAGES | _METADATA)
    if not is_dict(held):
        raise UsageError(f"{source}: holds a {type(held).__name__} where a mapping from data ids to results must stand")
    return {str(name): _results(f"{source}, entry {name!r}", record) for name, record in held.items()}


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _results(where: str, record: Any) -> list[Found]:
    if not is_dict(record):
        raise UsageError(f"{where}: is a {type(record).__name__}; it must hold {TITLES[0]} and {PICTURES[0]}")
    titles, pictures = (_list(where, record, keys) for keys in (TITLES, PICTURES))
    out: list[Found] = []
    for n, (title, picture) in enumerate(zip_longest(titles, pictures)):
        if isinstance(title, str) and title.strip():  # a picture alone tells nobody anything
            out.append(_found(f"{where}, picture {n}", title.strip(), picture))
    return out


def _list(where: str, record: dict[Any, Any], keys: tuple[str, ...]) -> list[Any]:
    key = next((k for k in keys if k in record), None)
    if key is None:
        raise UsageError(f"{where}: has {', '.join(map(str, record))[:200]}; expected {' or '.join(keys)}")
    value = record[key]
    if not (is_list(value) or is_tuple(value)):
        raise UsageError(f"{where}: {key} is a {type(value).__name__}, not a list")
    return list(value)


def _found(where: str, title: str, picture: Any) -> Found:
    if picture is None or isinstance(picture, bytes):
        return Found(title, picture)
    if isinstance(picture, str):
        return Found(title, picture.strip() or None)
    if isinstance(picture, Inert) and picture.name in PIL_IMAGES:
        try:
            return Found(title, _encoded(picture.state))
        except (ValueError, TypeError) as e:
            return Found(title, lost=f"is a PIL image that is not whole ({str(e)[:60]})")
    raise UsageError(f"{where}: is a {getattr(picture, 'name', type(picture).__name__)}; expected a URL, a path or a PIL image")


def _encoded(state: Any) -> bytes:
    """PNG of a PIL image, from what `Image.__getstate__` writes: info, mode, (width, height), palette, pixels, and more.

    ValueError or TypeError if it is anything else.
    """
    if not (is_list(state) or is_tuple(state)) or len(state) < 5:
        raise ValueError("no state of an image")
    _, mode, size, palette, pixels = state[:5]
    width, height = size
    if mode not in _MODES or not isinstance(pixels, bytes):
        raise ValueError(f"mode {mode!r}"[:40])
    if not (isinstance(width, int) and isinstance(height, int) and 0 < width * height <= MAX_PIXELS and width > 0):
        raise ValueError(f"{width} x {height} pixels"[:40])
    if not (palette is None or is_list(palette)):
        raise ValueError(f"palette {palette!r}"[:40])
    image = Image.frombytes(mode, (width, height), pixels)
    if mode == "P":
        image.putpalette(bytes(palette or []))
    elif mode in ("CMYK", "YCbCr"):  # which PNG does not have
        image = image.convert("RGB")
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()
