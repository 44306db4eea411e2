"""What a judge has said: a cache by content, and a log of every verdict as it was given."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from pathlib import Path
from typing import Any

from megatron_mmsr1.errors import RunError

BUSY_S = 10.0  # how long another process may hold the file
_TABLE = "CREATE TABLE IF NOT EXISTS verdicts (key BLOB PRIMARY KEY, raw TEXT NOT NULL, created REAL NOT NULL) WITHOUT ROWID"


class Verdicts:
    """`cache`: an SQLite file on a local disk that several processes may share; None keeps nothing. `log`: a JSONL file of this
    process; None writes none. Both are made at their first use. Raises RunError that names the file."""

    def __init__(self, cache: Path | None, log: Path | None) -> None:
        self._cache, self._log = cache, log
        self._db: sqlite3.Connection | None = None

    def get(self, key: bytes) -> str | None:
        if self._cache is None:
            return None
        try:
            row = self._open(self._cache).execute("SELECT raw FROM verdicts WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as e:
            raise self._failed(e) from None
        return None if row is None else str(row[0])

    def put(self, key: bytes, raw: str) -> None:
        if self._cache is None:
            return
        try:
            self._open(self._cache).execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)", (key, raw, time.time()))
        except sqlite3.Error as e:
            raise self._failed(e) from None

    def note(self, row: dict[str, Any]) -> None:
        """One line, whole: a process that is killed leaves no half of one before another."""
        if self._log is None:
            return
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("ab", buffering=0) as f:
                f.write(json.dumps({"at": round(time.time(), 3), **row}, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        except OSError as e:
            raise RunError(f"judge log {self._log}: {e.strerror or e}") from None

    def _open(self, path: Path) -> sqlite3.Connection:
        if self._db is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(_TABLE)
            self._db = db
        return self._db

    def _failed(self, e: sqlite3.Error) -> RunError:
        return RunError(f"judge cache {self._cache}: {e}: move it away, or name another with the judge's setting cache")


def in_run(directory: Path | None, name: str, cache: str | None) -> Verdicts:
    """Those of a run that keeps them in `directory` (None: no run), under the judge's name; `cache` names another file."""
    host = socket.gethostname()
    if directory is None:
        return Verdicts(Path(cache) if cache else None, None)
    kept = Path(cache) if cache else directory / f"{name}-{host}.sqlite"
    return Verdicts(kept, directory / f"{name}-{host}-{os.getpid()}.jsonl")
