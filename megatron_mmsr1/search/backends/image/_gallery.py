"""The pictures of a corpus: `images.jsonl` with {"id", "title", "url", "file"} a line, files relative to the directory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.protocol import clean
from megatron_mmsr1.search.backends.corpus import rows
from megatron_mmsr1.search.backends.interfaces import ImageResult, SearchFailure
from megatron_mmsr1.search.backends.thumbnails import reencode
from megatron_mmsr1.trajectory import ToolStatus


@dataclass(slots=True, frozen=True)
class Picture:
    url: str
    title: str
    file: Path
    sha256: str  # of the file


class Gallery:
    """Raises UsageError that names the line and the file if one is missing; whether each is a picture, decoding will show."""

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
            self.pictures.append(Picture(clean(row["url"]), clean(row["title"]), file, sha))
        if not self.pictures:
            raise UsageError(f"{self.listing}: holds no picture")
        self.version = digest.hexdigest()[:16]
        self._thumbnail = lru_cache(1024)(self._make_thumbnail)

    def result(self, n: int, score: float) -> ImageResult:
        """The n-th picture as a hit. SearchFailure(upstream_error) if its file can no longer be read."""
        p = self.pictures[n]
        return ImageResult(p.url, p.title, self._thumbnail(n), score)

    def _make_thumbnail(self, n: int) -> bytes:
        try:
            return reencode(self.pictures[n].file.read_bytes(), self._side)
        except OSError as e:
            why = f"{self.pictures[n].file.name} cannot be read any more ({e.strerror})"
            raise SearchFailure(ToolStatus.UPSTREAM_ERROR, why) from None
