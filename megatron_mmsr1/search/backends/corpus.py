"""The local corpus: `corpus.jsonl` with {"id", "url", "title", "html"} a line, each page cleaned once; and its pictures,
`images.jsonl` with {"id", "title", "url", "file"} a line, files relative to the directory."""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
from PIL import Image

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.protocol import clean
from megatron_mmsr1.search.backends.interfaces import ImageResult, Page, SearchFailure
from megatron_mmsr1.search.web.pages import page_text
from megatron_mmsr1.search.web.pictures import reencode
from megatron_mmsr1.trajectory import ToolStatus
from megatron_mmsr1.untyped import is_dict


class Corpus:
    """Pages in file order, and by URL. `version` is the hash of the file and of the cleaning rules."""

    RULES = "1"

    def __init__(self, pages: list[Page], ids: list[str], version: str):
        self.pages = pages
        self.ids = ids
        self.version = version
        self.by_url = {p.url: p for p in pages}

    @classmethod
    def load(cls, directory: str | Path) -> Corpus:
        """Raises UsageError that names the file, the line and the field that is wrong."""
        path = Path(directory) / "corpus.jsonl"
        pages: list[Page] = []
        ids: list[str] = []
        seen: dict[str, int] = {}
        digest = hashlib.sha256(cls.RULES.encode())
        for line, row, raw in rows(path, ("id", "url", "title", "html")):
            for key in ("id", "url"):
                first = seen.setdefault(f"{key}:{row[key]}", line)
                if first != line:
                    raise UsageError(f"{path}:{line}: {key} {row[key]!r} stands on line {first} already")
            digest.update(raw)
            ids.append(row["id"])
            pages.append(Page(row["url"], clean(row["title"]), page_text(row["html"], row["title"])))
        if not pages:
            raise UsageError(f"{path}: holds no page")
        return cls(pages, ids, digest.hexdigest()[:16])


def rows(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str], bytes]]:
    """(line number, row, raw line) of a JSONL file whose rows hold these string fields; UsageError names what is wrong."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise UsageError(f"no {path.name} in {path.parent}: search.corpus must name a directory that holds it") from None
    for n, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        try:
            row: Any = orjson.loads(raw)
        except orjson.JSONDecodeError as e:
            raise UsageError(f"{path}:{n}: not valid JSON: {e}") from None
        if not is_dict(row):
            raise UsageError(f"{path}:{n}: must be an object with {', '.join(keys)}")
        for key in keys:
            if not isinstance(row.get(key), str):
                raise UsageError(f"{path}:{n}: {key!r} must be a string, got {row.get(key)!r}")
        yield n, row, raw


# How the local backends cut text into words, and how a query is normalised for a cache key.
_WORD = re.compile(r"[^\W_]+")
_MARKS = re.compile("[\u0300-\u036f]")
# Words of a question that say nothing about which sentence answers it.
_STOP = """
a an and are as at be by did do does for from had has have how in is it its of on or that the their this to
was were what when where which who whom whose why will with
"""
STOP = frozenset(_STOP.split())


def words(text: str) -> list[str]:
    """Lower-case words without accents: `Zürich's 2nd` -> [zurich, s, 2nd]."""
    if text.isascii():
        return _WORD.findall(text.lower())
    return _WORD.findall(_MARKS.sub("", unicodedata.normalize("NFKD", text).casefold()))


def normalise(query: str) -> str:
    """The form of a query that a cache key holds: NFKC, case folded, white space squeezed."""
    return " ".join(unicodedata.normalize("NFKC", query).casefold().split())


@dataclass(slots=True, frozen=True)
class Picture:
    url: str
    title: str
    file: Path
    line: int  # of the listing
    sha256: str  # of the file


class Gallery:
    """The pictures of a corpus. `version`: of the listing, the files and the thumbnails' longest side.

    Raises UsageError that names the line and the file if one is missing; whether each is a picture, decoding will show.
    """

    def __init__(self, directory: Path, thumbnail_pixels: int):
        self.listing = directory / "images.jsonl"
        self.pictures: list[Picture] = []
        self._side = thumbnail_pixels
        digest = hashlib.sha256()
        for line, row, raw in rows(self.listing, ("id", "title", "url", "file")):
            file = (directory / row["file"]).resolve()
            if not file.is_relative_to(directory.resolve()):
                raise UsageError(f"{self.listing}:{line}: file {row['file']!r} lies outside {directory}")
            try:
                sha = hashlib.sha256(file.read_bytes()).hexdigest()
            except OSError as e:
                raise UsageError(f"{self.listing}:{line}: {file}: {e.strerror}") from None
            digest.update(raw + sha.encode())
            self.pictures.append(Picture(clean(row["url"]), clean(row["title"]), file, line, sha))
        if not self.pictures:
            raise UsageError(f"{self.listing}: holds no picture")
        self.version = f"{digest.hexdigest()[:16]}:{thumbnail_pixels}"
        self._thumbnail = lru_cache(1024)(self._make_thumbnail)

    def result(self, n: int, score: float) -> ImageResult:
        """The n-th picture as a hit. SearchFailure(upstream_error) if its file can no longer be read."""
        p = self.pictures[n]
        return ImageResult(p.url, p.title, self._thumbnail(n), score)

    def _make_thumbnail(self, n: int) -> bytes:
        """The file as it is where it fits, so that a small picture loses nothing."""
        try:
            data = self.pictures[n].file.read_bytes()
        except OSError as e:
            why = f"{self.pictures[n].file.name} cannot be read any more ({e.strerror})"
            raise SearchFailure(ToolStatus.UPSTREAM_ERROR, why) from None
        with Image.open(io.BytesIO(data)) as original:
            if max(original.size) <= self._side:
                return data
        return reencode(data, self._side)
