"""Cache, snapshot and single flight: a value is computed once, however many ask for it at the same time, and kept in the store.

What the modes do on top of that (`search.mode`): `record` takes a value that could not be kept for a failed call; `replay`
keeps nothing new; `replay-strict` computes nothing at all. Failures and degraded values are never kept here, so who asks next
tries again; in `record` the outcome of the one call that met them is kept beside (outcomes.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from megatron_mmsr1.config.search import Mode
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.search.interfaces import Backend, SearchFailure
from megatron_mmsr1.search.store import Store
from megatron_mmsr1.trajectory import ToolStatus

log = logging.getLogger(__name__)

STORE_ERRORS = (sqlite3.Error, RunError)


@dataclass(slots=True, frozen=True)
class Value:
    """`degraded`: part of what was asked for; not kept. `cached`: no backend was asked for it now."""

    data: bytes
    degraded: bool = False
    cached: bool = False


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
    """`store` None keeps nothing and only joins calls in flight. `on_store_error` counts what the file could not do,
    `on_miss` what a snapshot being replayed did not hold."""

    def __init__(
        self,
        store: Store | None,
        mode: Mode = "live",
        on_store_error: Callable[[], None] = lambda: None,
        on_miss: Callable[[], None] = lambda: None,
    ):
        self.store = store
        self.mode = mode
        self._on_store_error, self._on_miss = on_store_error, on_miss
        self._flying: dict[bytes, asyncio.Task[Value]] = {}

    @property
    def replays(self) -> bool:
        return self.mode in ("replay", "replay-strict")

    async def through(self, key: bytes, kind: str, compute: Callable[[], Awaitable[Value]]) -> Value:
        """From the store, from a twin in flight, or computed now and stored. What `compute` raises reaches everyone who waits.
        A waiter that is cancelled does not end the computation for the others."""
        task = self._flying.get(key)
        if task is not None:
            joined = await asyncio.shield(task)
            return Value(joined.data, joined.degraded, cached=True)
        held = self.get(key)
        if held is not None:
            return Value(held, cached=True)
        if self.replays:
            self._on_miss()
        if self.mode == "replay-strict":
            raise SearchFailure(ToolStatus.UPSTREAM_ERROR, "the snapshot does not hold it, and search.mode is replay-strict")
        task = asyncio.get_running_loop().create_task(self._fly(key, kind, compute))
        self._flying[key] = task
        task.add_done_callback(lambda t: self._landed(key, t))
        return await asyncio.shield(task)

    def get(self, key: bytes) -> bytes | None:
        """What the store holds; None where there is no store or it fails (counted and said; in replay-strict raised)."""
        if self.store is None:
            return None
        try:
            return self.store.get(key)
        except STORE_ERRORS as e:
            self._failed(e)
            return None

    async def put(self, key: bytes, kind: str, data: bytes) -> None:
        """Keep it. The search still works without its store, except in `record`: SearchFailure, for what was not kept must
        not be observed."""
        if self.store is None or self.replays:
            return
        try:
            await self.store.put(key, kind, data)
        except STORE_ERRORS as e:
            self._failed(e)
            if self.mode == "record":
                raise SearchFailure(ToolStatus.UPSTREAM_ERROR, f"the result could not be recorded ({e})") from None

    async def _fly(self, key: bytes, kind: str, compute: Callable[[], Awaitable[Value]]) -> Value:
        value = await compute()
        if not value.degraded:
            await self.put(key, kind, value.data)
        return value

    def _landed(self, key: bytes, task: asyncio.Task[Value]) -> None:
        del self._flying[key]
        if not task.cancelled():
            task.exception()  # taken here too: all who waited may have gone

    def _failed(self, e: Exception) -> None:
        self._on_store_error()
        log.warning("search store failed: %s", e)

    async def close(self) -> None:
        """Wait for what is in flight, then close the store."""
        await asyncio.gather(*self._flying.values(), return_exceptions=True)
        if self.store is not None:
            self.store.close()
