"""A store out into one file, and back: what a run was answered, for who wants to run it again.

An export is one read transaction, so a server may write meanwhile. An import is checked whole, in a file beside the store,
before any of it can be seen.
"""

from __future__ import annotations

import calendar
import contextlib
import itertools
import json
import os
import sqlite3
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from megatron_mmsr1 import __version__
from megatron_mmsr1.data.files import replacing
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.search.store import entries as store_entries
from megatron_mmsr1.search.store import file as store_file
from megatron_mmsr1.search.store.entries import Codec, Content, Count, Entry
from megatron_mmsr1.search.store.snapshot_file import (
    TIME,
    Bad,
    Manifest,
    Payload,
    Record,
    backends_note,
    read_manifest,
    read_payload,
)
from megatron_mmsr1.search.store.store import BUSY_S

META_BACKENDS = "backends"
MAX_BYTES = 64 << 30  # of a payload, decompressed
_GROUP = 128  # records a transaction


@dataclass(slots=True, frozen=True)
class Imported:
    """`id`: the store's, now. `present` keys were there with the same value; `conflicts` with another, which stayed."""

    manifest: Manifest
    id: str
    added: int
    present: int = 0
    conflicts: int = 0


def export(store_path: Path, out: Path) -> Manifest:
    """Write the store's entries to the new file `out`; every value is checked on the way.

    Raises UsageError if there is no store or `out` is there already; StoreDamaged; RunError if `out` cannot be written.
    """
    if out.exists():
        raise UsageError(f"{out} is there already: remove it, or name another file")
    db = store_file.open_readonly(store_path)
    with contextlib.closing(db), store_file.failing(store_path), store_file.transaction(db, "BEGIN"):
        try:
            with replacing(out) as f:
                manifest = _write(store_path, db, f)
        except OSError as e:
            raise RunError(f"{out} cannot be written ({e.strerror}): name another file") from e
    return manifest


def import_(file: Path, store_path: Path, *, max_bytes: int = MAX_BYTES) -> Imported:
    """Check a snapshot, then make it the store at `store_path`, or add it to the store that is there: its values stay.

    Needs room beside the store for the snapshot's entries. Raises UsageError if there is no file; RunError that says what is
    wrong with it (then nothing was added), or that more than `max_bytes` would be unpacked; StoreError.
    """
    if not file.is_file():
        raise UsageError(f"there is no snapshot at {file}")
    wal = store_path.with_name(store_path.name + "-wal")
    if not store_path.exists() and wal.exists() and wal.stat().st_size:
        raise RunError(f"{wal} is left of a store that is gone; SQLite would mix it in: remove it first")
    if store_path.exists():
        store_file.open_writable(store_path, BUSY_S).close()  # what is no store of ours is said before the work
    with _opened(file) as f, store_file.failing(store_path):
        store_path.parent.mkdir(parents=True, exist_ok=True)
        with _beside(store_path) as fresh:
            try:
                manifest, packed = read_manifest(f)
                if manifest.bytes > max_bytes:
                    raise Bad(f"it unpacks to {manifest.bytes} bytes; {max_bytes} are allowed")
                _fill(fresh, read_payload(f, manifest, packed), manifest)
            except Bad as e:
                raise RunError(f"{file} was not imported: {e}") from None
            try:
                os.link(fresh, store_path)  # unlike a rename, never over a store that came up meanwhile
            except FileExistsError:
                return _merge(fresh, store_path, manifest)
    return Imported(manifest, manifest.id, sum(manifest.entries.values()))


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as e:
        raise RunError(f"{file} cannot be read ({e.strerror})") from e


@contextlib.contextmanager
def _beside(path: Path) -> Generator[Path]:
    """A name on the same file system for what is not whole yet; gone in the end, with what SQLite puts beside it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.part")
    names = [fresh.with_name(fresh.name + suffix) for suffix in ("", "-wal", "-shm")]
    for name in names:  # of a process that had our number and was killed
        name.unlink(missing_ok=True)
    try:
        yield fresh
    finally:
        for name in names:
            name.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------------- export
def _write(path: Path, db: sqlite3.Connection, f: BinaryIO) -> Manifest:
    payload, contents = Payload(f), 0
    for _, value in store_entries.contents(path, db):
        payload.content(value)
        contents += 1
    count, newest = Count(), None
    for key, kind, created, content in db.execute("SELECT key, kind, created, content FROM entries ORDER BY key"):
        payload.entry(key, kind, content)
        count.add(key, kind, content)
        newest = max(created, newest or created)
    if count.tally != store_entries.tally(db):
        raise store_file.damaged(path, "its entries are not those that its digest counts")
    if what := store_entries.loose(db):
        raise store_file.damaged(path, what)
    try:
        backends = backends_note(store_entries.get_meta(db, META_BACKENDS))
    except (ValueError, AttributeError) as e:
        raise store_file.damaged(path, f"its note of backends: {e}") from None
    sha256 = payload.end()
    manifest = Manifest(
        id=store_entries.snapshot_id(count.tally),
        entries={kind: n for kind, (n, _) in sorted(count.tally.items())},
        contents=contents,
        bytes=payload.bytes,
        sha256=sha256,
        created=None if newest is None else time.strftime(TIME, time.gmtime(newest)),
        backends=backends,
        version=__version__,
    )
    payload.finish(manifest)
    return manifest


# ------------------------------------------------------------------------------------------------------------------- import
def _fill(path: Path, records: Iterator[bytes | Record], manifest: Manifest) -> None:
    """A store of its own from a payload. Raises Bad."""
    codec, created, contents = Codec(), _made(manifest), 0
    with contextlib.closing(store_file.open_writable(path, BUSY_S)) as db:
        more = True
        while more:
            more = False
            entries: list[Entry] = []
            with store_file.transaction(db):
                for record in itertools.islice(records, _GROUP):
                    more = True
                    if isinstance(record, bytes):
                        store_entries.add_content(db, codec.pack(record))
                        contents += 1
                    else:
                        key, kind, content = record
                        entries.append(Entry(key, kind, created, content))
                store_entries.add(db, entries)
        tally = store_entries.tally(db)
        if store_entries.snapshot_id(tally) != manifest.id:
            raise Bad("its entries do not have the id of its manifest")
        if contents != manifest.contents or {kind: n for kind, (n, _) in tally.items()} != manifest.entries:
            raise Bad("its entries are not as many as its manifest says")
        if what := store_entries.loose(db):
            raise Bad(what)
        with store_file.transaction(db):
            store_entries.set_meta(db, META_BACKENDS, _note(manifest))


def _merge(fresh: Path, store_path: Path, manifest: Manifest) -> Imported:
    """In small transactions: a server may be at work on the store. Done again after an interruption, it goes on."""
    query = "SELECT key, kind, created, hash, size, data FROM entries JOIN contents ON hash = content ORDER BY key"
    added = present = conflicts = 0
    with (
        contextlib.closing(store_file.open_readonly(fresh)) as source,
        contextlib.closing(store_file.open_writable(store_path, BUSY_S)) as store,
    ):
        rows = (Entry(key, kind, at, h, Content(h, size, data)) for key, kind, at, h, size, data in source.execute(query))
        for group in itertools.batched(rows, _GROUP):
            with store_file.transaction(store):
                for entry, new in zip(group, store_entries.add(store, group), strict=True):
                    if new:
                        added += 1
                    elif _holds(store, entry):
                        present += 1
                    else:
                        conflicts += 1
        with store_file.transaction(store):
            if store_entries.get_meta(store, META_BACKENDS) is None:
                store_entries.set_meta(store, META_BACKENDS, _note(manifest))
        return Imported(manifest, store_entries.snapshot_id(store_entries.tally(store)), added, present, conflicts)


def _holds(db: sqlite3.Connection, e: Entry) -> bool:
    return db.execute("SELECT kind, content FROM entries WHERE key = ?", (e.key,)).fetchone() == (e.kind, e.hash)


def _made(manifest: Manifest) -> float:
    return 0.0 if manifest.created is None else float(calendar.timegm(time.strptime(manifest.created, TIME)))


def _note(manifest: Manifest) -> str:
    return json.dumps({kind: note.model_dump() for kind, note in manifest.backends.items()})
