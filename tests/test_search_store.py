"""The store: what was put is there whole, under a digest that knows no order, whoever else writes; its failures are typed."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_fixtures import key

from megatron_mmsr1.search.store.store import KINDS, SCHEMA, Store, StoreError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    s = Store(tmp_path / "sub" / "c.sqlite")
    yield s
    s.close()


# ----------------------------------------------------------------------------------------------------------------- values
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


async def test_every_kind_and_size(store: Store) -> None:
    values = {f"{kind} {n}": (kind, bytes(i % 251 for i in range(n))) for kind in KINDS for n in (0, 1, 255, 70_000)}
    assert await store.put_many((key(name), kind, value) for name, (kind, value) in values.items()) == len(values)
    for name, (_, value) in values.items():
        assert store.get(key(name)) == value
    assert store.counts() == dict.fromkeys(KINDS, 4)
    assert store.verify() == store.snapshot_id()


async def test_equal_values_are_kept_once(store: Store) -> None:
    page = b"the same page " * 1000
    await store.put_many([(key(str(i)), "page", page) for i in range(50)])
    db = sqlite3.connect(store.path)
    assert db.execute("SELECT count(*), sum(size) FROM contents").fetchone() == (1, len(page))
    assert len(db.execute("SELECT data FROM contents").fetchone()[0]) < len(page) / 10
    db.close()


async def test_put_many_is_all_or_nothing_and_counts_the_new(store: Store) -> None:
    assert await store.put_many([(key("a"), "text", b"1"), (key("b"), "text", b"2"), (key("a"), "text", b"3")]) == 2
    assert await store.put_many([(key("b"), "text", b"4"), (key("c"), "page", b"5")]) == 1
    assert await store.put_many([]) == 0
    with pytest.raises(ValueError, match="no key or kind"):
        await store.put_many([(key("d"), "text", b""), (b"short", "text", b"")])
    assert [store.get(key(k)) for k in "abcd"] == [b"1", b"2", b"5", None]


async def test_a_value_over_the_cap_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_mmsr1.search.store.entries.MAX_VALUE", 10)
    with pytest.raises(StoreError, match=r"c\.sqlite: a value of 11 bytes is over 10"):
        await store.put(key("a"), "text", b"x" * 11)


async def test_reads_from_many_threads_while_it_is_written(store: Store) -> None:
    n, wrong = 400, []

    def read() -> None:
        for i in list(range(n)) * 3:
            got = store.get(key(str(i)))
            if got not in (None, key(str(i)) * 50):
                wrong.append(i)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for t in threads:
        t.start()
    await asyncio.gather(*(store.put(key(str(i)), "page", key(str(i)) * 50) for i in range(n)))
    for t in threads:
        await asyncio.to_thread(t.join)
    assert not wrong
    assert store.counts() == {"page": n}


async def test_a_cancelled_put_disturbs_nobody(store: Store) -> None:
    puts = [asyncio.create_task(store.put(key(str(i)), "text", b"v" * 1000)) for i in range(200)]
    await asyncio.sleep(0)
    for p in puts[::2]:
        p.cancel()
    done = await asyncio.gather(*puts, return_exceptions=True)
    assert [d for d in done[1::2] if d is not None] == []
    assert all(store.get(key(str(i))) is not None for i in range(1, 200, 2))
    assert store.verify() == store.snapshot_id()


async def test_meta(store: Store) -> None:
    before = store.snapshot_id()
    assert store.get_meta("backends") is None
    store.set_meta("backends", "{}")
    store.set_meta("backends", '{"text": 1}')
    assert store.get_meta("backends") == '{"text": 1}'
    assert store.snapshot_id() == before


async def test_close_commits_what_waits(tmp_path: Path) -> None:
    store = Store(tmp_path / "c.sqlite")
    puts = [asyncio.create_task(store.put(key(str(i)), "text", b"v")) for i in range(1000)]
    await asyncio.sleep(0)
    store.close()
    store.close()
    await asyncio.gather(*puts)
    with pytest.raises(StoreError, match="closed"):
        await store.put(key("late"), "text", b"v")
    with pytest.raises(StoreError, match="closed"):
        store.set_meta("late", "v")
    again = Store.open_readonly(tmp_path / "c.sqlite")
    assert again.counts() == {"text": 1000}
    again.close()


# ----------------------------------------------------------------------------------------------------------------- digest
Entries = dict[bytes, tuple[str, bytes]]
ENTRIES = st.dictionaries(
    st.binary(min_size=32, max_size=32), st.tuples(st.sampled_from(KINDS), st.binary(max_size=40)), max_size=12
)
QUICK = settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def digest_of(path: Path, groups: list[list[tuple[bytes, str, bytes]]]) -> str:
    for p in path.parent.glob(path.name + "*"):
        p.unlink()
    store = Store(path)
    try:
        for group in groups:
            asyncio.run(store.put_many(group))
        assert store.verify() == store.snapshot_id()
        return store.snapshot_id()
    finally:
        store.close()


@QUICK
@given(entries=ENTRIES, data=st.data())
def test_equal_entries_have_one_id_in_whatever_order_they_came(tmp_path: Path, entries: Entries, data: st.DataObject) -> None:
    rows = [(k, kind, v) for k, (kind, v) in entries.items()]
    shuffled = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    twice = [*shuffled[cut:], *shuffled[:cut]]  # some come again, and change nothing
    assert digest_of(tmp_path / "a", [rows]) == digest_of(tmp_path / "b", [shuffled[:cut], twice])


@QUICK
@given(entries=ENTRIES.filter(bool), data=st.data())
def test_one_differing_byte_gives_another_id(tmp_path: Path, entries: Entries, data: st.DataObject) -> None:
    rows = [(k, kind, v) for k, (kind, v) in entries.items()]
    i = data.draw(st.integers(0, len(rows) - 1))
    k, kind, value = rows[i]
    bit = 1 << data.draw(st.integers(0, 7))

    def flip(b: bytes) -> bytes:
        at = data.draw(st.integers(0, len(b) - 1))
        return b[:at] + bytes([b[at] ^ bit]) + b[at + 1 :]

    changes = [(k, kind, value + b"x"), (k, next(o for o in KINDS if o != kind), value)]
    changes += [(flip(k), kind, value)] if flip(k) not in entries else []
    changes += [(k, kind, flip(value))] if value else []
    others = [[*rows[:i], c, *rows[i + 1 :]] for c in changes] + [rows[:i] + rows[i + 1 :]]
    ids = [digest_of(tmp_path / "a", [r]) for r in [rows, *others]]
    assert ids[0] not in ids[1:]
    assert all(len(i) == 16 and int(i, 16) >= 0 for i in ids)


async def test_the_id_of_what_was_recorded_is_known_for_good(store: Store) -> None:
    """Old checkpoints name it: whatever changes it must raise SCHEMA."""
    await store.put(bytes(32), "text", b"value")
    assert (SCHEMA, store.snapshot_id()) == (2, "2d3a5453889fca62")


# -------------------------------------------------------------------------------------------------------------- processes
WRITER = """
import asyncio, hashlib, sys
from megatron_mmsr1.search.store.store import Store
async def main(path, first, n):
    store = Store(path)
    async def one(i):
        k = hashlib.sha256(b"%d" % i).digest()
        await store.put(k, "text", k * 200)
        assert store.get(k) == k * 200
    for at in range(first, first + n, 20):
        await asyncio.gather(*(one(i) for i in range(at, min(at + 20, first + n))))
    store.close()
asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


def writer(path: Path, first: int, n: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(first), str(n)])


def test_four_processes_make_and_fill_one_file(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    processes = [writer(path, first, 600) for first in (0, 300, 300, 600)]  # most keys are several writers'
    assert [p.wait(60) for p in processes] == [0] * 4
    store = Store(path)
    assert store.counts() == {"text": 1200}
    for i in range(1200):
        k = hashlib.sha256(b"%d" % i).digest()
        assert store.get(k) == k * 200
    together = store.verify()
    assert together == store.snapshot_id()
    store.close()
    alone = tmp_path / "alone.sqlite"
    assert writer(alone, 0, 1200).wait(60) == 0
    store = Store.open_readonly(alone)
    assert store.snapshot_id() == together
    store.close()


async def test_what_one_process_wrote_is_a_hit_in_another(tmp_path: Path, store: Store) -> None:
    reader = Store.open_readonly(store.path)
    empty = reader.snapshot_id()
    assert writer(store.path, 0, 1).wait(60) == 0
    k = hashlib.sha256(b"0").digest()
    for s in (store, reader):  # both were open before
        assert s.get(k) == k * 200
        assert s.snapshot_id() != empty
    reader.close()
