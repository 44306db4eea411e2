"""A store that may not be written, is full, held, damaged or none at all: typed failures, and never wrong bytes."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_fixtures import key

from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.search.store.store import Store, StoreDamaged, StoreError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    s = Store(tmp_path / "sub" / "c.sqlite")
    yield s
    s.close()


def edit(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    for s in statements:
        db.execute(s)
    db.close()


# ---------------------------------------------------------------------------------------------------------------- reading
async def test_for_reading_only(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with pytest.raises(UsageError, match=r"no search store at .*c\.sqlite"):
        Store.open_readonly(path)
    assert not list(tmp_path.iterdir())
    store = Store(path)
    await store.put(key("a"), "text", b"1")
    store.close()
    before = path.read_bytes()
    held = Store.open_readonly(path)
    assert (held.get(key("a")), held.get(key("b")), held.counts()) == (b"1", None, {"text": 1})
    for attempt in (held.put(key("b"), "text", b"2"), held.put_many([])):
        with pytest.raises(StoreError, match="reading only"):
            await attempt
    with pytest.raises(StoreError, match="reading only"):
        held.set_meta("a", "b")
    assert held.verify() == held.snapshot_id()
    held.close()
    assert path.read_bytes() == before


def test_an_empty_file_is_a_new_store_but_nothing_to_replay(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    path.touch()
    with pytest.raises(RunError, match="nothing was recorded"):
        Store.open_readonly(path)
    Store(path).close()
    Store.open_readonly(path).close()


# A child that may not write, also where the tests run as root (its permissions hold only for others).
UNPRIVILEGED = """
import hashlib, os, sys
from pathlib import Path
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.search.store.store import Store
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for opened in (Store.open_readonly, Store):
    try:
        store = opened(Path(sys.argv[1]))
        print(store.get(hashlib.sha256(b"a").digest()), store.verify(), store.get_meta("none"))
        store.close()
    except RunError as e:
        print(e)
"""


def unprivileged(directory: Path) -> list[str]:
    """What it says on the store in a directory that it may read and not write."""
    closed = [p for p in directory.parents if p.stat().st_mode & 0o005 != 0o005 and p != p.parent]
    modes = {p: p.stat().st_mode for p in [*closed, directory]}
    try:
        for p in closed:
            p.chmod(0o755)
        for p in directory.iterdir():
            p.chmod(0o444)
        directory.chmod(0o555)
        command = [sys.executable, "-c", UNPRIVILEGED, str(directory / "c.sqlite")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        for p, mode in modes.items():
            p.chmod(mode)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


async def test_in_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "c.sqlite")
    await store.put(key("a"), "text", b"1")
    ident = store.snapshot_id()
    store.close()
    read, written = unprivileged(tmp_path)
    assert read == f"b'1' {ident} None"
    assert "c.sqlite" in written
    assert "cannot be written" in written
    assert [p.name for p in tmp_path.iterdir()] == ["c.sqlite"]


async def test_commits_that_cannot_be_read_are_not_passed_over(tmp_path: Path) -> None:
    """A copy of a store at work: what was committed last is in its WAL, which needs an index that may not be made."""
    (tmp_path / "copy").mkdir()
    Store(tmp_path / "c.sqlite").close()
    store = Store(tmp_path / "c.sqlite")
    await store.put(key("a"), "text", b"1")
    for name in ("c.sqlite", "c.sqlite-wal"):
        shutil.copy(tmp_path / name, tmp_path / "copy")
    store.close()
    for said in unprivileged(tmp_path / "copy"):
        assert "c.sqlite: " in said  # and not None, as if nothing had been put


# --------------------------------------------------------------------------------------------------------------- failures
@pytest.mark.parametrize("opened", [Store, Store.open_readonly])
def test_a_file_that_is_no_store_is_named(tmp_path: Path, opened: Callable[[Path], Store]) -> None:
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"no database, but long enough to be looked at" * 50)
    with pytest.raises(StoreDamaged, match=r"c\.sqlite.*not a database.*move it away"):
        opened(path)
    path.unlink()
    edit(path, "CREATE TABLE bookmarks (url TEXT)")
    with pytest.raises(RunError, match=r"c\.sqlite: this is another program's"):
        opened(path)
    edit(path, "DROP TABLE bookmarks", "CREATE TABLE entries (key, kind, created, value)", "PRAGMA user_version=1")
    with pytest.raises(RunError, match=r"c\.sqlite: written as version 1, this is version 2: move it away, or name another"):
        opened(path)


def test_a_store_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    Store(path).close()
    edit(path, "PRAGMA user_version=99")
    with pytest.raises(RunError, match=r"c\.sqlite.*version 99"):
        Store(path)


def test_a_place_that_cannot_hold_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/c\.sqlite: "):
        Store(tmp_path / "file" / "c.sqlite")
    with pytest.raises(StoreError, match=r"search store .*: unable to open"):
        Store(tmp_path)


async def test_a_full_disk_fails_the_put_and_not_the_store(store: Store) -> None:
    await store.put(key("a"), "text", b"1")
    assert store._writer is not None
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count={pages + 1}")  # SQLite's own way to be full
    noise = b"".join(key(str(i)) for i in range(2000))
    found = await asyncio.gather(
        store.put(key("b"), "page", noise),
        store.put_many([(key("c"), "text", b"2"), (key("d"), "page", noise)]),
        return_exceptions=True,
    )
    assert all(isinstance(f, StoreError) and "is full: free some space" in str(f) for f in found)
    assert (store.get(key("a")), store.get(key("b")), store.get(key("c"))) == (b"1", None, None)
    store._writer.execute("PRAGMA max_page_count=1000000")
    await store.put(key("b"), "page", noise)
    assert store.get(key("b")) == noise
    assert store.verify() == store.snapshot_id()


LIMITED = """
import asyncio, hashlib, resource, sys
from megatron_mmsr1.search.store.store import Store, StoreError
def key(i): return hashlib.sha256(b"%d" % i).digest()
async def main():
    store = Store(sys.argv[1])
    await store.put(key(0), "text", b"1")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    for i in range(1, 1000):
        try:
            await store.put(key(i), "page", key(i) * 30 + b"".join(key(j) for j in range(i, i + 1000)))
        except StoreError as e:
            print(i, e)
            break
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await store.put(key(2000), "text", b"2")
    store.close()
asyncio.run(main())
"""


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    failed = int(done.stdout.split()[0])
    assert "c.sqlite: disk I/O error: the disk or its quota failed" in done.stdout
    store = Store.open_readonly(path)
    assert store.counts() == {"text": 2, "page": failed - 1}
    assert store.verify() == store.snapshot_id()
    store.close()


async def test_a_file_that_another_process_holds(tmp_path: Path) -> None:
    store = Store(tmp_path / "c.sqlite", busy_s=0.05)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"c\.sqlite: database is locked: another process holds it"):
        await store.put(key("a"), "text", b"1")
    with pytest.raises(StoreError, match="locked"):
        store.set_meta("a", "b")
    assert store.get(key("a")) is None  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    await store.put(key("a"), "text", b"1")
    store.close()


async def test_a_table_that_is_gone_is_a_typed_failure(store: Store) -> None:
    edit(store.path, "DROP TABLE entries")
    with pytest.raises(StoreError, match="no such table"):
        store.get(key("a"))
    with pytest.raises(StoreError, match="no such table"):
        await store.put(key("a"), "text", b"1")


# ----------------------------------------------------------------------------------------------------------------- damage
@pytest.mark.long
async def test_every_flipped_bit_of_a_value_is_found(tmp_path: Path) -> None:
    path, value = tmp_path / "c.sqlite", b"a page that says something " * 3
    store = Store(path)
    await store.put(key("a"), "page", value)
    db = sqlite3.connect(path, isolation_level=None)
    (data,) = db.execute("SELECT data FROM contents").fetchone()
    for at in range(len(data)):
        for bit in range(8):
            db.execute("UPDATE contents SET data = ?", (data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :],))
            try:
                assert store.get(key("a")) == value  # some bits of the frame mean nothing
            except StoreDamaged as e:
                assert key("a").hex() in str(e)
    for cut in range(len(data)):
        db.execute("UPDATE contents SET data = ?", (data[:cut],))
        with pytest.raises(StoreDamaged):
            store.get(key("a"))
    db.close()
    store.close()


DAMAGE = {
    "another value's frame": "UPDATE contents SET data = (SELECT data FROM contents WHERE size = 5) WHERE size = 3",
    "a missing content": "DELETE FROM contents WHERE size = 3",
    "a size": "UPDATE contents SET size = 4 WHERE size = 3",
}
HIDDEN = {
    "an entry more": "INSERT INTO entries SELECT zeroblob(32), kind, created, content FROM entries LIMIT 1",
    "an entry less": "DELETE FROM entries WHERE kind = 'text'",
    "a moved entry": "UPDATE entries SET kind = 'image' WHERE kind = 'text'",
    "a swapped value": "UPDATE entries SET content = (SELECT hash FROM contents WHERE size = 5)",
    "a tally": "UPDATE tally SET entries = entries + 1",
    "a sum": "UPDATE tally SET sum = zeroblob(32)",
    "a content more": "INSERT INTO contents SELECT zeroblob(32), size, data FROM contents LIMIT 1",
}


async def filled(path: Path) -> bytes:
    store = Store(path)
    await store.put_many([(key("a"), "text", b"abc"), (key("b"), "page", b"abcde")])
    store.close()
    return key("a")


@pytest.mark.parametrize("statement", DAMAGE.values(), ids=DAMAGE.keys())
async def test_a_damaged_value_is_never_served(tmp_path: Path, statement: str) -> None:
    k = await filled(tmp_path / "c.sqlite")
    edit(tmp_path / "c.sqlite", statement)
    for store in (Store(tmp_path / "c.sqlite"), Store.open_readonly(tmp_path / "c.sqlite")):
        with pytest.raises(StoreDamaged, match=r"c\.sqlite is damaged"):
            store.get(k)
        with pytest.raises(StoreDamaged, match=r"c\.sqlite is damaged"):
            store.verify()
        assert store.get(key("b")) == b"abcde"
        store.close()


@pytest.mark.parametrize("statement", HIDDEN.values(), ids=HIDDEN.keys())
async def test_what_a_single_read_cannot_see_is_found_by_verify(tmp_path: Path, statement: str) -> None:
    await filled(tmp_path / "c.sqlite")
    edit(tmp_path / "c.sqlite", statement)
    store = Store.open_readonly(tmp_path / "c.sqlite")
    with pytest.raises(StoreDamaged, match=r"c\.sqlite is damaged"):
        store.verify()
    store.close()


async def test_torn_pages_of_the_file_are_found(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    store = Store(path)
    await store.put_many([(key(str(i)), "page", key(str(i)) * 60) for i in range(300)])
    store.close()
    raw = bytearray(path.read_bytes())
    for at in range(4096, len(raw), 8192):
        raw[at : at + 64] = b"\xff" * 64
    path.write_bytes(raw)
    store = Store.open_readonly(path)
    with pytest.raises(StoreDamaged):
        store.verify()
    served = 0
    for i in range(300):
        try:
            value = store.get(key(str(i)))
            assert value in (None, key(str(i)) * 60)  # never wrong bytes
            served += value is not None
        except StoreDamaged:
            continue
    assert served < 300
    store.close()
