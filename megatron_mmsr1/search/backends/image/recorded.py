"""Image search from recorded results: exactly the pictures that a run's rows hold, and for each what a real search once found.

`mmsr1 search convert` makes the directory (`search.recorded_convert`), for instance from FVQA's released results. The form of
that release is known from public code that reads it, not from the file itself; the converter says so where it meets another.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
from pydantic import Field

from megatron_mmsr1.config.search import ImageSection
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.protocol import clean
from megatron_mmsr1.search.backends.interfaces import ImageResult, SearchFailure
from megatron_mmsr1.search.backends.tools import Tools
from megatron_mmsr1.trajectory import ToolStatus

_FILE = re.compile(r"images/[0-9a-f]{2}/([0-9a-f]{64})\.(jpg|png)", re.ASCII)


class Options(Section):
    path: str = Field(min_length=1, description="the directory that `mmsr1 search convert` wrote")


def make(section: ImageSection, tools: Tools) -> Recorded:
    return Recorded(Path(tools.options(section, Options, "search.image").path))


class Recorded:
    """Raises UsageError that names the line if `recorded.jsonl` is not as the converter writes it, or lacks a picture."""

    name = "recorded"
    local = True

    def __init__(self, directory: Path):
        self._directory = directory
        listing = directory / "recorded.jsonl"
        try:
            data = listing.read_bytes()
        except OSError:
            raise UsageError(f"no recorded.jsonl in {directory}: make one with mmsr1 search convert") from None
        self._hits = dict(_row(listing, n, raw) for n, raw in enumerate(data.split(b"\n"), 1) if raw.strip())
        for file in {f for hits in self._hits.values() for _, _, f in hits if f}:
            if not (directory / file).is_file():
                raise UsageError(f"{directory / file} is missing: convert again, or copy the whole directory")
        # Pictures are named by their hash, so the listing's covers them.
        self.version = f"1:{hashlib.sha256(data).hexdigest()[:16]}"
        self._picture = lru_cache(1024)(self._read)

    async def search(self, image: bytes, k: int) -> Sequence[ImageResult]:
        """What was recorded for exactly these bytes; nothing for any other picture."""
        hits = self._hits.get(hashlib.sha256(image).hexdigest(), ())
        return [ImageResult(url, title, self._picture(file) if file else None) for title, url, file in hits[:k]]

    def _read(self, file: str) -> bytes:
        try:
            data = (self._directory / file).read_bytes()
        except OSError as e:
            raise SearchFailure(ToolStatus.UPSTREAM_ERROR, f"{file} cannot be read any more ({e.strerror})") from None
        if hashlib.sha256(data).hexdigest() != Path(file).stem:
            raise SearchFailure(ToolStatus.UPSTREAM_ERROR, f"{file} is not the picture that was recorded")
        return data

    async def close(self) -> None:
        pass


def _row(listing: Path, n: int, raw: bytes) -> tuple[str, tuple[tuple[str, str, str], ...]]:
    try:
        row: Any = orjson.loads(raw)
        hits = tuple((clean(h["title"]), clean(h["url"]), _file(h["file"])) for h in row["hits"])
        if not re.fullmatch(r"[0-9a-f]{64}", row["key"], re.ASCII):
            raise ValueError("key is no SHA-256")
        return row["key"], hits
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise UsageError(f"{listing}:{n}: not a row of mmsr1 search convert ({type(e).__name__}: {str(e)[:80]})") from None


def _file(name: Any) -> str:
    """A picture's place as the converter names it: below images/, nowhere else. "" for None."""
    if name is None:
        return ""
    if not _FILE.fullmatch(name):
        raise ValueError(f"file {name!r}"[:60])
    return name
