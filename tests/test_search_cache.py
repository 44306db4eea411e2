"""The cache over the store: computed once, kept once. (The store itself: test_search_store.py.)"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.store import cache as cache_module
from megatron_mmsr1.search.store.cache import Cache, Value, cache_key
from megatron_mmsr1.search.store.store import Store
from megatron_mmsr1.trajectory import ToolStatus


@dataclass
class Named:
    name: str = "b"
    version: str = "1"
    local: bool = True

    async def close(self) -> None: ...


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    s = Store(tmp_path / "sub" / "cache.sqlite")
    yield s
    s.close()


def key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


async def test_a_thousand_twins_in_flight_are_one_computation(store: Store) -> None:
    cache, calls = Cache(store), 0

    async def compute() -> Value:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.02)
        return Value(b"v")

    found = await asyncio.gather(*(cache.through(key("k"), "text", compute) for _ in range(1000)))
    assert calls == 1
    assert [v.data for v in found] == [b"v"] * 1000
    assert sum(not v.cached for v in found) == 1
    assert await cache.through(key("k"), "text", compute) == Value(b"v", cached=True)
    assert calls == 1


async def test_failures_reach_every_waiter_and_are_not_kept(store: Store) -> None:
    cache, calls = Cache(store), 0

    async def compute() -> Value:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        if calls == 1:
            raise SearchFailure(ToolStatus.UPSTREAM_ERROR, "down")
        return Value(b"v")

    found = await asyncio.gather(*(cache.through(key("k"), "t", compute) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(f, SearchFailure) for f in found)
    assert calls == 1
    assert await cache.through(key("k"), "t", compute) == Value(b"v")


async def test_a_cancelled_waiter_leaves_the_others_their_result(store: Store) -> None:
    cache, throttle = Cache(store), asyncio.Event()

    async def compute() -> Value:
        await throttle.wait()
        return Value(b"v")

    first = asyncio.create_task(cache.through(key("k"), "t", compute))
    second = asyncio.create_task(cache.through(key("k"), "t", compute))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    throttle.set()
    assert await second == Value(b"v", cached=True)


async def test_what_hangs_does_not_keep_the_server_from_its_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends in a while is kept, for it may be paid for; what does not is given up, and who waits is told."""
    monkeypatch.setattr(cache_module, "CLOSE_S", 0.2)
    cache, path = Cache(store), store.path

    async def compute(seconds: float) -> Value:
        await asyncio.sleep(seconds)
        return Value(b"v")

    soon = asyncio.create_task(cache.through(key("soon"), "t", lambda: compute(0.05)))
    never = asyncio.create_task(cache.through(key("never"), "t", lambda: compute(1e6)))
    await asyncio.sleep(0)
    await cache.close()
    assert await soon == Value(b"v")
    with pytest.raises(SearchFailure) as e:
        await never
    assert e.value.status is ToolStatus.UPSTREAM_ERROR
    again = Store(path)
    assert (again.get(key("soon")), again.get(key("never"))) == (b"v", None)
    again.close()


async def test_a_failing_file_is_counted_and_does_not_fail_the_search(tmp_path: Path) -> None:
    errors = 0

    def count() -> None:
        nonlocal errors
        errors += 1

    async def compute() -> Value:
        return Value(b"v")

    store = Store(tmp_path / "c.sqlite")
    with sqlite3.connect(tmp_path / "c.sqlite") as other:
        other.execute("DROP TABLE entries")
    other.close()
    assert await Cache(store, "live", count).through(key("k"), "t", compute) == Value(b"v")
    assert errors == 2  # the read and the write
    store.close()


def test_the_key_depends_on_everything_that_the_value_depends_on() -> None:
    base = cache_key("text", [Named()], "q", 5)
    others = [
        cache_key("image", [Named()], "q", 5),
        cache_key("text", [Named(name="c")], "q", 5),
        cache_key("text", [Named(version="2")], "q", 5),
        cache_key("text", [Named(), Named()], "q", 5),
        cache_key("text", [Named()], "r", 5),
        cache_key("text", [Named()], b"q", 5),
        cache_key("text", [Named()], "q", 4),
        cache_key("text", [Named()], "q", 5, {"gl": "de"}),
    ]
    assert len({base, *others}) == len(others) + 1
    assert cache_key("text", [Named()], "q", 5) == base
    assert len(base) == 32
    assert cache_key("text", [Named()], "\ud800", 5)


async def test_an_outage_of_the_store_is_said_once_at_each_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """86 calls meet a store that neither reads nor writes: two lines, and two when it works again."""
    store, broken, failed = Store(tmp_path / "a"), Store(tmp_path / "b"), 0
    broken.close()

    def count() -> None:
        nonlocal failed
        failed += 1

    async def compute() -> Value:
        return Value(b"v")

    cache = Cache(broken, on_store_error=count)
    for n in range(86):
        assert (await cache.through(key(str(n)), "text", compute)).data == b"v"
    assert (len(caplog.messages), failed) == (2, 172)
    assert caplog.messages[0].startswith("reading the search store fails: ") and "writing" in caplog.messages[1]
    cache.store = store
    for n in range(5):
        await cache.through(key(str(n)), "text", compute)
    assert len(caplog.messages) == 4
    assert all("works again: 86 failures" in m for m in caplog.messages[2:])
    store.close()
