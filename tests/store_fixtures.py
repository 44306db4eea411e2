"""Stores for the tests, made of nothing but numbers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

from megatron_mmsr1.search.store.store import KINDS, Store

BACKENDS = {"text": {"name": "serper", "version": "1 us en", "local": False}}


def key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def rows(n: int, first: int = 0) -> list[tuple[bytes, str, bytes]]:
    return [(key(str(i)), KINDS[i % 6], f"the page of {i // 2} ".encode() * (i % 40)) for i in range(first, first + n)]


def make(path: Path, entries: list[tuple[bytes, str, bytes]], backends: dict[str, Any] | None = None) -> str:
    store = Store(path)
    asyncio.run(store.put_many(entries))
    if backends is not None:
        store.set_meta("backends", json.dumps(backends))
    ident = store.snapshot_id()
    store.close()
    return ident


def held(path: Path) -> tuple[str, list[Any]]:
    store = Store.open_readonly(path)
    ident = store.verify()
    store.close()
    db = sqlite3.connect(path)
    found = db.execute("SELECT key, kind, content FROM entries ORDER BY key").fetchall()
    db.close()
    return ident, found
