"""What the store holds: contents, kept once each and compressed; entries that name one; the digest over all entries.

`tally` holds, for each kind, the number of entries and the sum modulo 2**256 of their hashes; a sum knows no order, so equal
sets of entries have equal sums however they came together. It changes in the transaction that adds entries. It finds damage
and difference, not forgery: who checks what a stranger sent checks the sha256 of the whole (snapshot_file.py).

Functions that take a connection raise sqlite3.Error.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from megatron_mmsr1.search.store.file import SCHEMA, damaged, failing, transaction

KEY_BYTES = 32
MAX_VALUE = 64 << 20  # bytes; a reply with its pictures is well under one of them
KIND = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_LEVEL = 3
_MODULUS = 2**256

Tally = dict[str, tuple[int, int]]  # kind -> entries, sum of their hashes


@dataclass(slots=True, frozen=True)
class Content:
    """A value as it is kept: the sha256 and the size in bytes of the value, its zstd frame (with a checksum)."""

    hash: bytes
    size: int
    data: bytes


@dataclass(slots=True, frozen=True)
class Entry:
    """`created`: seconds since 1970, UTC. `content` None: the caller knows that the file holds it."""

    key: bytes
    kind: str
    created: float
    hash: bytes
    content: Content | None = None


class Codec:
    """Values to contents and back. Not for two threads at once."""

    def __init__(self) -> None:
        self._zip = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        self._unzip = zstandard.ZstdDecompressor()

    def pack(self, value: bytes) -> Content:
        return Content(hashlib.sha256(value).digest(), len(value), self._zip.compress(value))

    def unpack(self, data: bytes, size: int) -> bytes:
        """Raises ValueError if the frame's checksum or its size is not as it was."""
        try:
            # The frame's own claim is looked at first: decompress() would reserve whatever it says.
            if zstandard.frame_content_size(data) == size <= MAX_VALUE:
                return self._unzip.decompress(data)
        except (zstandard.ZstdError, TypeError) as e:  # TypeError: it is missing, or no bytes
            raise ValueError(str(e)) from None
        raise ValueError("the size is another")


def add(db: sqlite3.Connection, entries: Iterable[Entry]) -> list[bool]:
    """Inside a transaction: add what has a new key, and say of each whether it had. The first value of a key stays."""
    new: list[bool] = []
    fresh = Count()
    for e in entries:
        row = (e.key, e.kind, e.created, e.hash)
        new.append(db.execute("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?)", row).rowcount == 1)
        if new[-1]:
            fresh.add(e.key, e.kind, e.hash)
            if e.content is not None:
                add_content(db, e.content)
    known = tally(db) if fresh.tally else {}
    for kind, more in fresh.tally.items():
        n, total = known.get(kind, (0, 0))
        row = (kind, n + more[0], ((total + more[1]) % _MODULUS).to_bytes(32))
        db.execute("INSERT OR REPLACE INTO tally VALUES (?, ?, ?)", row)
    return new


def add_content(db: sqlite3.Connection, c: Content) -> None:
    db.execute("INSERT OR IGNORE INTO contents VALUES (?, ?, ?)", (c.hash, c.size, c.data))


def get_meta(db: sqlite3.Connection, name: str) -> str | None:
    row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return None if row is None else row[0]


def set_meta(db: sqlite3.Connection, name: str, value: str) -> None:
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def contents(path: Path, db: sqlite3.Connection) -> Iterator[tuple[bytes, bytes]]:
    """(sha256, value) in the order of the hashes, each checked. Raises StoreDamaged."""
    codec = Codec()
    for digest, size, data in db.execute("SELECT hash, size, data FROM contents ORDER BY hash"):
        try:
            value = codec.unpack(data, size)
        except ValueError as e:
            raise damaged(path, f"content {digest.hex()}: {e}") from None
        if hashlib.sha256(value).digest() != digest:
            raise damaged(path, f"content {digest.hex()} is another")
        yield digest, value


# ------------------------------------------------------------------------------------------------------------------- digest
class Count:
    """Entries, one after another, to their tally."""

    def __init__(self) -> None:
        self.tally: Tally = {}

    def add(self, key: bytes, kind: str, content: bytes) -> None:
        n, total = self.tally.get(kind, (0, 0))
        digest = hashlib.sha256(key + kind.encode() + content).digest()
        self.tally[kind] = (n + 1, (total + int.from_bytes(digest)) % _MODULUS)


def tally(db: sqlite3.Connection) -> Tally:
    return {k: (n, int.from_bytes(s)) for k, n, s in db.execute("SELECT kind, entries, sum FROM tally ORDER BY kind")}


def snapshot_id(tally: Tally) -> str:
    """16 hex digits that name a set of entries."""
    n, total = sum(n for n, _ in tally.values()), sum(s for _, s in tally.values()) % _MODULUS
    return hashlib.sha256(f"{SCHEMA} {total:064x} {n}".encode()).hexdigest()[:16]


def verify(path: Path, db: sqlite3.Connection) -> str:
    """Read everything, compute every hash and the digest anew; the snapshot's id. Raises StoreDamaged that says what is wrong.

    `db` is in no transaction; what is written meanwhile does not disturb.
    """
    with failing(path), transaction(db, "BEGIN"):
        for (said,) in db.execute("PRAGMA integrity_check(1)"):
            if said != "ok":
                raise damaged(path, said)
        for _ in contents(path, db):
            pass
        if what := loose(db):
            raise damaged(path, what)
        found = Count()
        for key, kind, content in db.execute("SELECT key, kind, content FROM entries"):
            found.add(key, kind, content)
        if found.tally != tally(db):
            raise damaged(path, "its entries are not those that its digest counts")
    return snapshot_id(found.tally)


def loose(db: sqlite3.Connection) -> str:
    """What hangs in the air; "" if nothing does."""
    for what, query in (
        ("entries have no content", "entries WHERE content NOT IN (SELECT hash FROM contents)"),
        ("contents belong to no entry", "contents WHERE hash NOT IN (SELECT content FROM entries)"),
    ):
        (n,) = db.execute(f"SELECT count(*) FROM {query}").fetchone()
        if n:
            return f"{n} {what}"
    return ""
