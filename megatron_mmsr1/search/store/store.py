"""The store: cache and snapshot in one SQLite file (WAL) that several processes may read and write at the same time.

A `put` returns once its transaction is committed, so that what was served is in the file even if the process is killed right
after. A power cut may lose the last seconds' commits (store_file.py says why). Commits are grouped by one writer thread, which
also hashes and compresses; reads run in the caller's thread, and WAL never lets a writer block them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from megatron_mmsr1.search.store import entries as store_entries
from megatron_mmsr1.search.store import file as store_file
from megatron_mmsr1.search.store.entries import Codec, Entry
from megatron_mmsr1.search.store.file import SCHEMA, StoreDamaged, StoreError

__all__ = ["KINDS", "SCHEMA", "Store", "StoreDamaged", "StoreError"]

# Whole results of the two tools; the layers query -> URLs, URL -> text, text + query -> summary; a call's outcome that was no
# success.
KINDS = ("text", "image", "search", "page", "summary", "outcome")
BUSY_S = 10.0
_GROUP = 256  # entries a transaction, about

_GET = "SELECT data, size, content FROM entries LEFT JOIN contents ON hash = content WHERE key = ?"


@dataclass(slots=True)
class _Put:
    """Entries that are committed together."""

    entries: list[tuple[bytes, str, bytes]]
    done: Future[int]


class Store:
    """Keys are 32-byte hashes, values are bytes; the first value of a key stays. Any thread may call.

    Everything raises StoreError (a RunError that names the file) if the file fails; StoreDamaged, one of them, if it no longer
    holds what was put. Opening also raises RunError for a file that is no store of this version.
    """

    def __init__(self, path: str | Path, *, busy_s: float = BUSY_S):
        """Made if it is not there. `busy_s`: how long to wait for another process that holds the file."""
        self.path = Path(path)
        self._open(store_file.open_writable(self.path, busy_s))
        self._writer: sqlite3.Connection | None = store_file.open_writable(self.path, busy_s)
        self._thread = threading.Thread(target=self._write, name="store", daemon=True)
        self._thread.start()

    @classmethod
    def open_readonly(cls, path: str | Path) -> Store:
        """For replay: the file must be there, and is not changed. `put` fails. UsageError if there is no such file.

        In a directory where SQLite may not write, the file is read as one that nobody writes: then see to that.
        """
        self = cls.__new__(cls)
        self.path = Path(path)
        self._open(store_file.open_readonly(self.path))
        self._writer = None
        return self

    def _open(self, reader: sqlite3.Connection) -> None:
        self._reader = reader
        self._codec = Codec()
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._queue: queue.SimpleQueue[_Put | None] = queue.SimpleQueue()
        self._closed = False

    # ------------------------------------------------------------------------------------------------------------- entries
    def get(self, key: bytes) -> bytes | None:
        """The value, its checksum checked; None if there is none."""
        with self._reading:
            try:
                row = self._reader.execute(_GET, (key,)).fetchone()
                return None if row is None else self._codec.unpack(row[0], row[1])
            except sqlite3.Error as e:
                raise store_file.explained(self.path, e) from e
            except ValueError as e:
                raise store_file.damaged(self.path, f"the value of key {key.hex()}: {e}") from None

    async def put(self, key: bytes, kind: str, value: bytes) -> None:
        """Returns once it is committed."""
        await self.put_many([(key, kind, value)])

    async def put_many(self, entries: Iterable[tuple[bytes, str, bytes]]) -> int:
        """(key, kind, value) each, committed together or not at all; how many keys were new."""
        put = _Put(list(entries), Future())
        for key, kind, value in put.entries:
            if len(key) != store_entries.KEY_BYTES or not store_entries.KIND.fullmatch(kind):
                raise ValueError(f"no key or kind of the store: {key!r}, {kind!r}")
            if len(value) > store_entries.MAX_VALUE:
                raise StoreError(f"search store {self.path}: a value of {len(value)} bytes is over {store_entries.MAX_VALUE}")
        if self._writer is None or self._closed:
            raise self._cannot_write()
        self._queue.put(put)
        return await asyncio.wrap_future(put.done)

    def counts(self) -> dict[str, int]:
        """Entries a kind."""
        return {kind: n for kind, (n, _) in self._tally().items()}

    def snapshot_id(self) -> str:
        """16 hex digits that name what the store holds now: equal for equal (key, kind, value) in whatever order they came."""
        return store_entries.snapshot_id(self._tally())

    def verify(self) -> str:
        """Read everything, compute all hashes and the id anew; the id. Minutes for a large store. Raises StoreDamaged."""
        with contextlib.closing(store_file.open_readonly(self.path)) as db:  # its own, so that `get` need not wait
            return store_entries.verify(self.path, db)

    # ---------------------------------------------------------------------------------------------------------------- meta
    def get_meta(self, name: str) -> str | None:
        """A word beside the entries, which the snapshot's id does not cover."""
        with self._reading, store_file.failing(self.path):
            return store_entries.get_meta(self._reader, name)

    def set_meta(self, name: str, value: str) -> None:
        """The last value stays. Committed when this returns."""
        if self._writer is None or self._closed:
            raise self._cannot_write()
        with self._writing, store_file.failing(self.path), store_file.transaction(self._writer):
            store_entries.set_meta(self._writer, name, value)

    def close(self) -> None:
        """Commit what waits and close; the last process folds the WAL into the file."""
        if self._closed:
            return
        self._closed = True
        if self._writer is not None:
            self._queue.put(None)
            self._thread.join()
            self._writer.close()
        self._reader.close()

    def _tally(self) -> store_entries.Tally:
        with self._reading, store_file.failing(self.path):
            return store_entries.tally(self._reader)

    def _cannot_write(self) -> StoreError:
        why = "it is closed" if self._closed else "it was opened for reading only"
        return StoreError(f"search store {self.path}: {why}")

    # -------------------------------------------------------------------------------------------------------------- writer
    def _write(self) -> None:
        codec = Codec()
        for puts in self._groups():
            for p in puts:
                p.done.set_running_or_notify_cancel()
            try:
                self._commit(puts, codec)
            except Exception as e:  # whatever it is, who waits must hear of it, and the thread must live
                for p in puts:
                    if not p.done.cancelled():
                        p.done.set_exception(e)

    def _groups(self) -> Iterator[list[_Put]]:
        """What waits, a transaction's worth at a time; ends at None."""
        while (put := self._queue.get()) is not None:
            group, n = [put], len(put.entries)
            while n < _GROUP and not self._queue.empty():
                put = self._queue.get()
                if put is None:
                    break
                group.append(put)
                n += len(put.entries)
            yield group
            if put is None:
                return

    def _commit(self, puts: list[_Put], codec: Codec) -> None:
        now, writer = time.time(), self._writer
        assert writer is not None
        entries: list[Entry] = []
        for key, kind, value in (e for p in puts for e in p.entries):
            content = codec.pack(value)
            entries.append(Entry(key, kind, now, content.hash, content))
        with self._writing, store_file.failing(self.path), store_file.transaction(writer):
            new = iter(store_entries.add(writer, entries))
        for p in puts:
            n = sum(itertools.islice(new, len(p.entries)))
            if not p.done.cancelled():
                p.done.set_result(n)
