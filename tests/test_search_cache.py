"""The store and the cache over it: computed once, kept once, safe with other processes and with being killed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.search.cache import Cache, Value, cache_key
from megatron_mmsr1.search.interfaces import SearchFailure
from megatron_mmsr1.search.store import Store
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


async def test_the_first_value_stays_and_survives_reopening(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    store = Store(path)
    await store.put(key("a"), "text", b"1")
    await store.put(key("a"), "text", b"2")
    await store.put(key("b"), "image", bytes(range(256)))
    store.close()
    assert not path.with_name("c.sqlite-wal").exists()
    again = Store(path)
    assert (again.get(key("a")), again.get(key("b")), again.get(key("c"))) == (b"1", bytes(range(256)), None)
    assert again.counts() == {"text": 1, "image": 1}
    again.close()


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
    cache, gate = Cache(store), asyncio.Event()

    async def compute() -> Value:
        await gate.wait()
        return Value(b"v")

    first = asyncio.create_task(cache.through(key("k"), "t", compute))
    second = asyncio.create_task(cache.through(key("k"), "t", compute))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    gate.set()
    assert await second == Value(b"v", cached=True)


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


@pytest.mark.parametrize("content", [b"no database, but long enough to be looked at" * 50, b""])
def test_a_file_that_is_no_store_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.sqlite"
    path.write_bytes(content)
    if content:
        with pytest.raises(RunError, match=r"c\.sqlite.*move it away"):
            Store(path)
    else:
        Store(path).close()  # an empty file is a new database


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    Store(path).close()
    with sqlite3.connect(path) as c:
        c.execute("PRAGMA user_version=99")
    c.close()
    with pytest.raises(RunError, match=r"c\.sqlite.*version 99"):
        Store(path)


WRITER = """
import asyncio, hashlib, sys
from megatron_mmsr1.search.store import Store
async def main(path, first, n):
    store = Store(path)
    async def one(i):
        k = hashlib.sha256(b"%d" % i).digest()
        await store.put(k, "text", k * 200)
        print(i, flush=True)  # only once it is committed
    for at in range(first, first + n, 20):
        await asyncio.gather(*(one(i) for i in range(at, min(at + 20, first + n))))
    store.close()
asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


def writer(path: Path, first: int, n: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(first), str(n)], stdout=subprocess.PIPE, text=True)


def check_entry(store: Store, i: int) -> None:
    k = hashlib.sha256(b"%d" % i).digest()
    assert store.get(k) == k * 200


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    processes = [writer(path, 0, 600), writer(path, 300, 600)]  # half of the keys are both's
    for p in processes:
        p.communicate(timeout=60)
        assert p.returncode == 0
    store = Store(path)
    assert store.counts() == {"text": 900}
    for i in range(900):
        check_entry(store, i)
    store.close()


async def test_what_one_process_wrote_is_a_hit_in_another(tmp_path: Path, store: Store) -> None:
    p = writer(store.path, 0, 1)
    p.communicate(timeout=60)
    check_entry(store, 0)  # a reader that was open before sees it


@pytest.mark.parametrize("after", [1, 57, 200])
def test_a_killed_writer_leaves_a_whole_store(tmp_path: Path, after: int) -> None:
    path = tmp_path / "c.sqlite"
    process = writer(path, 0, 10**9)
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(after)]
    os.kill(process.pid, signal.SIGKILL)
    said += [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    process.wait()
    process.stdout.close()
    store = Store(path)
    for i in said:  # nothing that was acknowledged is lost
        check_entry(store, i)
    store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    for k, v in connection.execute("SELECT key, value FROM entries"):  # and nothing is torn
        assert v == k * 200
    connection.close()
