"""Cache with single flight: a value is computed once, however many ask for it at the same time, and kept in the store.

Failures are never kept: who asks next tries again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson

from megatron_mmsr1.search.interfaces import Backend
from megatron_mmsr1.search.store import Store

log = logging.getLogger(__name__)


def cache_key(
    kind: str, backends: Sequence[Backend], query: str | bytes, k: int, params: dict[str, Any] | None = None
) -> bytes:
    """32 bytes from everything that the value depends on. `query`: a normalised text, or the bytes of a picture."""
    if isinstance(query, bytes):
        query = hashlib.sha256(query).hexdigest()
    who = [[b.name, b.version] for b in backends]
    # A lone surrogate cannot be UTF-8; replaced alike on both sides it is still the same key.
    query = query.encode("utf-8", "replace").decode()
    return hashlib.sha256(orjson.dumps([kind, who, params or {}, query, k], option=orjson.OPT_SORT_KEYS)).digest()


class Cache:
    """`store` None keeps nothing and only joins calls in flight. `on_store_error` counts what the file could not do."""

    def __init__(self, store: Store | None, on_store_error: Callable[[], None] = lambda: None):
        self._store = store
        self._on_store_error = on_store_error
        self._flying: dict[bytes, asyncio.Task[bytes]] = {}

    async def through(self, key: bytes, kind: str, compute: Callable[[], Awaitable[bytes]]) -> tuple[bytes, bool]:
        """(value, cached): from the store, from a twin in flight, or computed now and stored. What `compute` raises
        reaches everyone who waits. A waiter that is cancelled does not end the computation for the others."""
        task = self._flying.get(key)
        if task is not None:
            return await asyncio.shield(task), True
        held = self._get(key)
        if held is not None:
            return held, True
        task = asyncio.get_running_loop().create_task(self._fly(key, kind, compute))
        self._flying[key] = task
        task.add_done_callback(lambda t: self._landed(key, t))
        return await asyncio.shield(task), False

    async def _fly(self, key: bytes, kind: str, compute: Callable[[], Awaitable[bytes]]) -> bytes:
        value = await compute()
        if self._store is not None:
            try:
                await self._store.put(key, kind, value)
            except sqlite3.Error as e:
                self._failed(e)
        return value

    def _landed(self, key: bytes, task: asyncio.Task[bytes]) -> None:
        del self._flying[key]
        if not task.cancelled():
            task.exception()  # taken here too: all who waited may have gone

    def _get(self, key: bytes) -> bytes | None:
        if self._store is None:
            return None
        try:
            return self._store.get(key)
        except sqlite3.Error as e:
            self._failed(e)
            return None

    def _failed(self, e: sqlite3.Error) -> None:
        """The search still works without its store; that it does so is counted and said, not hidden."""
        self._on_store_error()
        log.warning("search cache failed: %s", e)

    async def close(self) -> None:
        """Wait for what is in flight, then close the store."""
        await asyncio.gather(*self._flying.values(), return_exceptions=True)
        if self._store is not None:
            self._store.close()
