"""Cache, snapshot and single flight: a value is computed once, however many ask for it at the same time, and kept in the store.

What the modes do on top of that (`search.mode`): `record` takes a value that could not be kept for a failed call; `replay`
keeps nothing new; `replay-strict` computes nothing at all. Failures and degraded values are never kept here, so who asks next
tries again; in `record` the outcome of the one call that met them is kept beside (outcomes.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from megatron_mmsr1.config.search import Mode
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.search.backends.interfaces import Backend, SearchFailure
from megatron_mmsr1.search.store.store import Store
from megatron_mmsr1.search.upstream.deadline import within
from megatron_mmsr1.search.upstream.ledger import Account, account
from megatron_mmsr1.search.upstream.limits import Outage
from megatron_mmsr1.trajectory import ToolStatus

log = logging.getLogger(__name__)

STORE_ERRORS = (sqlite3.Error, RunError)
CLOSE_S = 3.0  # what computes for nobody any more may take so long to end


@dataclass(slots=True, frozen=True)
class _Flight:
    """A computation under way, and who pays for it."""

    task: asyncio.Task[Value]
    who: Account


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
        self._flying: dict[bytes, _Flight] = {}
        # Each with an outage of its own: a full disk still reads.
        self._reading, self._writing = Outage("reading the search store", log), Outage("writing the search store", log)

    @property
    def replays(self) -> bool:
        return self.mode in ("replay", "replay-strict")

    async def through(self, key: bytes, kind: str, compute: Callable[[], Awaitable[Value]]) -> Value:
        """From the store, from a twin in flight, or computed now and stored. What `compute` raises reaches everyone who waits,
        but for the budget of an account that is not theirs. A waiter that is cancelled does not end the computation."""
        while (flight := self._flying.get(key)) is not None:
            try:
                joined = await _landing(flight.task)
                return Value(joined.data, joined.degraded, cached=True)
            except SearchFailure as e:
                if e.status is not ToolStatus.BUDGET or flight.who == account.get():
                    raise
                self._landed(key, flight)  # now: whoever goes on here must not meet it again
        held = self.get(key)
        if held is not None:
            return Value(held, cached=True)
        if self.replays:
            self._on_miss()
        if self.mode == "replay-strict":
            raise SearchFailure(ToolStatus.UPSTREAM_ERROR, "the snapshot does not hold it, and search.mode is replay-strict")
        flight = _Flight(asyncio.get_running_loop().create_task(self._fly(key, kind, compute)), account.get())
        self._flying[key] = flight
        flight.task.add_done_callback(lambda _: self._landed(key, flight))
        return await _landing(flight.task)

    def get(self, key: bytes) -> bytes | None:
        """What the store holds; None where there is no store or it fails, which is counted and said. In replay-strict that
        is a SearchFailure: to find nothing would be another result."""
        if self.store is None:
            return None
        try:
            held = self.store.get(key)
        except STORE_ERRORS as e:
            self._on_store_error()
            self._reading.failed(e)
            if self.mode == "replay-strict":
                raise SearchFailure(ToolStatus.UPSTREAM_ERROR, f"the snapshot cannot be read ({e})") from None
            return None
        self._reading.worked()
        return held

    async def put(self, key: bytes, kind: str, data: bytes) -> None:
        """Keep it. The search still works without its store, except in `record`: SearchFailure, for what was not kept must
        not be observed."""
        if self.store is None or self.replays:
            return
        try:
            await self.store.put(key, kind, data)
            self._writing.worked()
        except STORE_ERRORS as e:
            self._on_store_error()
            self._writing.failed(e)
            if self.mode == "record":
                raise SearchFailure(ToolStatus.UPSTREAM_ERROR, f"the result could not be recorded ({e})") from None

    async def _fly(self, key: bytes, kind: str, compute: Callable[[], Awaitable[Value]]) -> Value:
        # No timer of those who wait ends this task: without a clock of its own, one that hangs would be joined for ever.
        async with within(math.inf, f"the {kind}"):
            value = await compute()
        if not value.degraded:
            await self.put(key, kind, value.data)
        return value

    def _landed(self, key: bytes, flight: _Flight) -> None:
        if self._flying.get(key) is flight:
            del self._flying[key]
        if not flight.task.cancelled():
            flight.task.exception()  # taken here too: all who waited may have gone

    async def close(self) -> None:
        """Wait a little for what is in flight, for it may be paid for already; then close the store."""
        flying = [f.task for f in self._flying.values()]
        if flying:
            _, late = await asyncio.wait(flying, timeout=CLOSE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self.store is not None:
            self.store.close()


async def _landing(task: asyncio.Task[Value]) -> Value:
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        me = asyncio.current_task()
        if task.cancelled() and me is not None and not me.cancelling():
            raise SearchFailure(ToolStatus.UPSTREAM_ERROR, "the search server ends") from None
        raise
