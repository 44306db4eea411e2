"""The store's file: its tables, how it is opened, how a change is made whole, and what its failures are called."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Generator
from pathlib import Path

from megatron_mmsr1.errors import RunError, UsageError

SCHEMA = 2
_APPLICATION = 0x6D6D5331  # "mmS1", SQLite's place for a file's owner
_TABLES = (
    "CREATE TABLE entries (key BLOB PRIMARY KEY, kind TEXT NOT NULL, created REAL NOT NULL, content BLOB NOT NULL) "
    "WITHOUT ROWID",
    "CREATE TABLE contents (hash BLOB PRIMARY KEY, size INTEGER NOT NULL, data BLOB NOT NULL)",
    "CREATE TABLE tally (kind TEXT PRIMARY KEY, entries INTEGER NOT NULL, sum BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    f"PRAGMA user_version={SCHEMA}",
    f"PRAGMA application_id={_APPLICATION}",
)


class StoreError(RunError):
    """The store's file could not be read or written: the message names the file, why, and what to do."""


class StoreDamaged(StoreError):
    """What the file holds is not what was put there."""


# ------------------------------------------------------------------------------------------------------------------ opening
def open_writable(path: Path, busy_s: float) -> sqlite3.Connection:
    """Made if it is not there. Raises StoreError; RunError if it is another program's or another version's."""
    deadline = time.monotonic() + busy_s
    with failing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, timeout=busy_s, check_same_thread=False, isolation_level=None)
        try:
            mode = _to_wal(db, deadline)
            # A killed process loses nothing that was committed. A power cut may lose the commits since the last checkpoint,
            # whole ones from the end; it never tears the file. FULL would cost an fsync a commit.
            db.execute("PRAGMA synchronous=NORMAL")
            with transaction(db):
                if not _check(path, db):
                    for statement in _TABLES:
                        db.execute(statement)
        except BaseException:
            db.close()
            raise
    if mode != "wal":
        db.close()
        raise RunError(f"search store {path}: its file system has no shared memory for SQLite: put it on a local disk")
    return db


def open_readonly(path: Path) -> sqlite3.Connection:
    """The file is neither made nor changed. Raises UsageError if it is not there, and what `open_writable` does.

    SQLite keeps its index of a live file beside it. Where it may not, the file is read as one that nobody writes.
    """
    if not path.is_file():
        raise UsageError(f"there is no search store at {path}: record one, or make one with mmsr1 search import")
    with failing(path):
        try:
            return _readonly(path, "mode=ro")
        except sqlite3.OperationalError as e:
            # Commits that are only in the WAL cannot be read without that index, and must not be passed over.
            wal = path.with_name(path.name + "-wal")
            closed = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)  # as SQLite says it, with or without a WAL
            if e.sqlite_errorcode & 0xFF not in closed or (wal.exists() and wal.stat().st_size):
                raise
        return _readonly(path, "mode=ro&immutable=1")


def _readonly(path: Path, mode: str) -> sqlite3.Connection:
    db = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, check_same_thread=False, isolation_level=None)
    try:
        if not _check(path, db):
            raise RunError(f"search store {path}: the file is empty: nothing was recorded in it")
    except BaseException:
        db.close()
        raise
    return db


def _to_wal(db: sqlite3.Connection, deadline: float) -> str:
    while True:
        try:
            return db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        except sqlite3.OperationalError as e:
            # SQLite does not wait here by itself when two processes make one file.
            if e.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _check(path: Path, db: sqlite3.Connection) -> bool:
    """Whether the tables are there."""
    owner = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables and not version and not owner:
        return False
    if owner != _APPLICATION and not (version == 1 and tables == {"entries"}):
        raise RunError(f"search store {path}: this is another program's database: name another file with search.cache")
    if version != SCHEMA:
        raise RunError(
            f"search store {path}: written as version {version}, this is version {SCHEMA}: "
            "move it away, or name another with search.cache"
        )
    return True


@contextlib.contextmanager
def transaction(db: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Generator[None]:
    """All of it or nothing. IMMEDIATE: the tally that is read is the one that is written, whoever else writes."""
    db.execute(begin)
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite has rolled back by itself after some errors
            db.execute("ROLLBACK")
        raise


# ------------------------------------------------------------------------------------------------------------------- errors
@contextlib.contextmanager
def failing(path: Path) -> Generator[None]:
    """What SQLite or the system raises becomes a StoreError that names the file."""
    try:
        yield
    except StoreError:
        raise
    except sqlite3.Error as e:
        raise explained(path, e) from e
    except OSError as e:
        raise StoreError(f"search store {path}: {e.strerror or e}: name another with search.cache") from e


def damaged(path: Path, what: str) -> StoreDamaged:
    return StoreDamaged(f"search store {path} is damaged ({what}): move it away, or import its snapshot again")


def explained(path: Path, e: sqlite3.Error) -> StoreError:
    code = getattr(e, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return damaged(path, str(e))
    remedy = {
        sqlite3.SQLITE_FULL: "free some space, or put it on another disk with search.cache",
        sqlite3.SQLITE_BUSY: "another process holds it; end that one, or name another with search.cache",
        sqlite3.SQLITE_READONLY: "it cannot be written; change its permissions, or name another with search.cache",
        sqlite3.SQLITE_IOERR: "the disk or its quota failed; name another with search.cache",
    }.get(code, "move it away, or name another with search.cache")
    return StoreError(f"search store {path}: {e}: {remedy}")
