"""The content-addressed store under the cache: one SQLite file in WAL mode, safe with several processes.

A `put` returns once its transaction is committed, so that what was served is in the file even if the process is killed right
after. Commits are grouped by one writer thread; reads run in the caller's thread, which WAL never blocks.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from concurrent.futures import Future
from pathlib import Path

from megatron_mmsr1.errors import RunError

SCHEMA = 1
_TABLE = (
    "CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, kind TEXT NOT NULL, created REAL NOT NULL, value BLOB NOT NULL)"
)
_GROUP = 256  # entries a transaction
_BUSY_MS = 10_000

_Item = tuple[bytes, str, bytes, "Future[None]"]


class Store:
    """Keys are 32-byte hashes, values are bytes; the first value of a key stays.

    Raises RunError that names the file if it cannot be opened or is no store of ours.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._reader = _open(self.path)
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="store", daemon=True)
        self._thread.start()

    def get(self, key: bytes) -> bytes | None:
        """Raises sqlite3.Error if the file fails."""
        row = self._reader.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    async def put(self, key: bytes, kind: str, value: bytes) -> None:
        """Raises sqlite3.Error if the file fails (disk full, locked for 10 s)."""
        done: Future[None] = Future()
        self._queue.put((key, kind, value, done))
        await asyncio.wrap_future(done)

    def counts(self) -> dict[str, int]:
        """Entries a kind."""
        return dict(self._reader.execute("SELECT kind, count(*) FROM entries GROUP BY kind"))

    def close(self) -> None:
        """Commit what waits and close; the WAL is folded into the file."""
        self._queue.put(None)
        self._thread.join()
        self._reader.close()

    def _write(self) -> None:
        connection = _open(self.path)
        open_ = True
        while open_:
            item = self._queue.get()
            batch: list[_Item] = []
            while item is not None:
                batch.append(item)
                if len(batch) == _GROUP or self._queue.empty():
                    break
                item = self._queue.get()
            open_ = item is not None
            if batch:
                _commit(connection, batch)
        connection.close()


def _commit(connection: sqlite3.Connection, batch: list[_Item]) -> None:
    now = time.time()
    try:
        with connection:  # commits, or rolls back
            connection.executemany(
                "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?)", [(key, kind, now, value) for key, kind, value, _ in batch]
            )
    except sqlite3.Error as e:
        for *_, done in batch:
            done.set_exception(e)
        return
    for *_, done in batch:
        if not done.cancelled():
            done.set_result(None)


def _open(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, timeout=_BUSY_MS / 1000, check_same_thread=False)
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        # A killed process loses nothing committed; only a power cut may lose the last commits, never tear the file.
        connection.execute("PRAGMA synchronous=NORMAL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA):
            raise RunError(f"search cache {path}: written as version {version}, this is {SCHEMA}: move it away or name another")
        connection.execute(_TABLE)
        connection.execute(f"PRAGMA user_version={SCHEMA}")
        connection.commit()
    except sqlite3.Error as e:
        raise RunError(f"search cache {path}: {e}: move it away, or name another with search.cache") from None
    if mode != "wal":
        raise RunError(f"search cache {path}: its file system has no shared memory for SQLite: put it on a local disk")
    return connection
