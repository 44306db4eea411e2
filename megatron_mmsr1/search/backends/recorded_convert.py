"""`mmsr1 search convert SOURCE --rows PARQUET... --out DIR`: image searches that others recorded, for the `recorded` backend.

DIR then holds `recorded.jsonl` ({"key": SHA-256 of the question's picture, "hits": [{"title", "url", "file"}]} a line) and
`images/`, thumbnails of our own encoding under their hashes. The source says which row a result is for (`recorded_source`);
the rows say which picture that is.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import orjson

from megatron_mmsr1.config.search import FetchSection
from megatron_mmsr1.data import parquet
from megatron_mmsr1.data.files import write_bytes
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.backends.recorded_source import Found, is_url, read
from megatron_mmsr1.search.fetch import Fetcher
from megatron_mmsr1.search.web.pictures import fetch_thumbnail, reencode
from megatron_mmsr1.search.wire import MAX_IMAGE_BYTES
from megatron_mmsr1.untyped import is_dict

MAX_SIDE = 512
FETCHES = 16  # downloads at once
NOT_FETCHED = "is a URL, and nothing was downloaded"


@dataclass(slots=True)
class Report:
    """What came of a conversion. `missing`: why hits have no picture, and how many."""

    out: str
    entries: int = 0  # in the source
    rows: int = 0  # in the parquet files
    recorded: int = 0  # question pictures that can be looked up now
    hits: int = 0
    pictures: int = 0  # hits with one
    entries_without_row: int = 0
    rows_without_entry: int = 0
    missing: dict[str, int] = field(default_factory=dict[str, int])

    def __str__(self) -> str:
        lines = [
            f"{self.out}: {self.recorded} pictures can be looked up",
            f"{self.hits} hits, {self.pictures} of them with a picture",
            f"{self.entries} entries in the source, {self.entries_without_row} of them without a row",
            f"{self.rows} rows, {self.rows_without_entry} of them without an entry",
            *(f"{n} hits without a picture: it {why}" for why, n in sorted(self.missing.items())),
        ]
        return "\n".join(lines)


def convert(
    source: Path,
    rows: Sequence[Path],
    out: Path,
    images: Path | None = None,
    *,
    fetch: FetchSection | None = None,
    max_side: int = MAX_SIDE,
) -> Report:
    """Join `source` with the rows of veRL parquet files by `data_id` and write `out`; run again, it writes the same.

    `images`: where the picture files lie that the source names; nothing outside of it is read. `fetch`: download the thumbnails
    that the source only has URLs of, through the guarded fetcher; without it such hits keep their title alone.

    Raises UsageError for a source of another form, rows without `data_id`, or no row in common; RunError if `out` cannot be
    written.
    """
    found = read(source)
    report = Report(str(out), entries=len(found))
    wanted: dict[str, list[Found]] = {}  # by key
    met: set[str] = set()
    for data_id, key in _keys(rows):
        report.rows += 1
        if data_id in found:
            met.add(data_id)
            wanted.setdefault(key, found[data_id])  # rows may share a picture; what was found for it first stands
        else:
            report.rows_without_entry += 1
    if not met:
        ids = f"{_some(found)} in {source.name}"
        raise UsageError(f"no entry belongs to a row: data ids are {ids}, {report.rows} rows of {_names(rows)} have others")
    report.entries_without_row = len(found) - len(met)
    try:
        _write(out, report, wanted, _Pictures(out, images, fetch, max_side))
    except OSError as e:
        raise RunError(f"{out} cannot be written: {e.strerror}") from None
    return report


def _write(out: Path, report: Report, wanted: dict[str, list[Found]], pictures: _Pictures) -> None:
    urls = {f.picture for hits in wanted.values() for f in hits if isinstance(f.picture, str) and is_url(f.picture)}
    pictures.download(sorted(urls))
    lines: list[bytes] = []
    missing = Counter[str]()
    for key, hits in sorted(wanted.items()):
        row: list[dict[str, str | None]] = []
        for hit in hits:
            file, why = pictures.file(hit)
            missing.update([why] if why else [])
            report.pictures += file is not None
            url = hit.picture if isinstance(hit.picture, str) and is_url(hit.picture) else ""
            row.append({"title": hit.title, "url": url, "file": file})
        report.hits += len(row)
        lines.append(orjson.dumps({"key": key, "hits": row}) + b"\n")
    report.recorded, report.missing = len(lines), dict(missing)
    write_bytes(out / "recorded.jsonl", b"".join(lines))


def _keys(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """(data id, SHA-256 of the first picture's bytes) of each row that has a picture: what the rollout searches for."""
    for path in paths:
        names, groups = parquet.outline(path)
        if not {"data_id", "images"} <= set(names):
            raise UsageError(f"{path} has columns {', '.join(sorted(names))}: need data_id and images (veRL)")
        for group in range(len(groups)):
            table = parquet.row_group(path, group, ["data_id", "images"])
            for at in range(0, groups[group], 64):  # few pictures at a time
                for row in table.slice(at, 64).to_pylist():
                    cell = (row["images"] or [None])[0]
                    data = cell.get("bytes") if is_dict(cell) else cell
                    if isinstance(data, bytes):
                        yield str(row["data_id"]), hashlib.sha256(data).hexdigest()


class _Pictures:
    """Thumbnails under `out`/images. Each is kept once, under the hash of its bytes."""

    def __init__(self, out: Path, images: Path | None, fetch: FetchSection | None, max_side: int):
        self._out, self._images = out, None if images is None else images.resolve()
        self._fetch, self._max_side = fetch, max_side
        self._downloaded: dict[str, tuple[str | None, str]] = {}
        if self._images is not None and not self._images.is_dir():
            raise UsageError(f"no directory at {images}")

    def file(self, hit: Found) -> tuple[str | None, str]:
        """The kept file, relative to `out`, or None and why."""
        if isinstance(hit.picture, bytes):
            return self._keep(hit.picture)
        if hit.picture is None:
            return None, hit.lost or "was not recorded"
        if is_url(hit.picture):
            return self._downloaded.get(hit.picture, (None, NOT_FETCHED))
        try:
            path = self._find(hit.picture)
            if isinstance(path, str):
                return None, path
            if path.stat().st_size > MAX_IMAGE_BYTES:
                return None, f"has over {MAX_IMAGE_BYTES} bytes"
            data = path.read_bytes()
        except OSError:
            return None, "cannot be read"
        return self._keep(data)

    def download(self, urls: list[str]) -> None:
        if self._fetch is not None and urls:
            asyncio.run(self._download_all(urls, Fetcher(self._fetch)))

    async def _download_all(self, urls: list[str], fetcher: Fetcher) -> None:
        line = iter(urls)

        async def place() -> None:
            for url in line:
                try:
                    self._downloaded[url] = self._store(await fetch_thumbnail(fetcher, url, self._max_side)), ""
                except SearchFailure as e:
                    self._downloaded[url] = None, f"could not be downloaded: {e.status}"

        await asyncio.gather(*(place() for _ in range(FETCHES)))
        await fetcher.close()

    def _find(self, name: str) -> Path | str:
        """The file that a source's path means: below `images`, as it stands or without its leading directories, which are
        those of another machine. Else why there is none."""
        if self._images is None:
            raise UsageError(f"the source names picture files ({name[:80]!r}): say with --images where they are")
        parts = [p for p in PurePosixPath(name).parts if p != "/"]
        if ".." in parts or "\0" in name:
            return "is outside of --images"
        for n in range(len(parts)):
            path = self._images.joinpath(*parts[n:]).resolve()
            if path.is_file():
                return path if path.is_relative_to(self._images) else "is outside of --images"
        return "is not in --images"

    def _keep(self, data: bytes) -> tuple[str | None, str]:
        try:
            return self._store(reencode(data, self._max_side)), ""
        except SearchFailure:
            return None, "cannot be decoded"

    def _store(self, picture: bytes) -> str:
        sha = hashlib.sha256(picture).hexdigest()
        name = f"images/{sha[:2]}/{sha}.{'jpg' if picture.startswith(b'\xff\xd8') else 'png'}"
        if not (self._out / name).exists():
            write_bytes(self._out / name, picture, sync=False)  # its name tells whether it is whole, at every read
        return name


def _some(names: dict[str, list[Found]]) -> str:
    return ", ".join(list(names)[:3]) or "none"


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(p.name for p in paths) or "no file"
