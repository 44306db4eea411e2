"""kill -9 in the middle of writing: the store opens, nothing that was said to be kept is lost, nothing is torn."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_mmsr1.search.store.store import Store

# Says the number of an entry once its put has returned. Many values are equal, some are large.
WRITER = """
import asyncio, hashlib, sys
from megatron_mmsr1.search.store.store import Store
def value(i):
    return hashlib.sha256(b"%d" % (i % 500)).digest() * (3000 if i % 50 == 0 else 60)
async def main(path, first):
    store = Store(path)
    async def one(i):
        await store.put(hashlib.sha256(b"%d" % i).digest(), ("text", "page")[i % 2], value(i))
        print(i, flush=True)
    async def endless(lane):
        i = first + lane
        while True:
            await one(i)
            i += 16
    await asyncio.gather(*(endless(lane) for lane in range(16)))
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def key(i: int) -> bytes:
    return hashlib.sha256(b"%d" % i).digest()


def value(i: int) -> bytes:
    return hashlib.sha256(b"%d" % (i % 500)).digest() * (3000 if i % 50 == 0 else 60)


def start(path: Path, first: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(first)], stdout=subprocess.PIPE, text=True)


def kill(process: subprocess.Popen[str], said: list[int]) -> None:
    """kill -9; `said` gets what was acknowledged before it died."""
    os.kill(process.pid, signal.SIGKILL)
    assert process.stdout is not None
    said += [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL


def check(path: Path, said: list[int]) -> None:
    store = Store(path)
    for i in said:
        assert store.get(key(i)) == value(i), i
    assert sum(store.counts().values()) >= len(said)
    assert store.verify() == store.snapshot_id()
    store.close()


@pytest.mark.parametrize("seed", range(3))
def test_many_rounds_of_killed_writers(tmp_path: Path, seed: int) -> None:
    """One file through all rounds; odd rounds have two writers, of which one goes on while the other dies."""
    rng, path, said = random.Random(seed), tmp_path / "c.sqlite", list[int]()
    for turn in range(8):
        writers = [start(path, turn * 10**7 + w * 10**6) for w in range(1 + turn % 2)]
        for w in writers:
            assert w.stdout is not None
            said.append(int(w.stdout.readline()))
        for w in writers:
            time.sleep(rng.uniform(0, 0.08))
            kill(w, said)
        check(path, said)
    assert len(said) > 100


def test_killed_while_the_file_is_made(tmp_path: Path) -> None:
    """Before, in and after the first transaction: what is there is a store, or becomes one."""
    rng = random.Random(0)
    script = "import sys; from megatron_mmsr1.search.store.store import Store; print(flush=True); Store(sys.argv[1])"
    for turn in range(20):
        path = tmp_path / f"{turn}.sqlite"
        process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.003))
        process.kill()
        process.communicate()
        check(path, [])


def test_a_reader_goes_on_through_a_writers_death(tmp_path: Path) -> None:
    path, said = tmp_path / "c.sqlite", list[int]()
    Store(path).close()
    reader = Store.open_readonly(path)
    for turn in range(3):
        writer = start(path, turn * 10**6)
        assert writer.stdout is not None
        said.append(int(writer.stdout.readline()))
        assert reader.get(key(said[-1])) == value(said[-1])
        kill(writer, said)
        assert all(reader.get(key(i)) == value(i) for i in said)
    assert reader.verify() == reader.snapshot_id()
    reader.close()


async def test_an_import_that_is_killed_leaves_nothing_to_be_seen(tmp_path: Path) -> None:
    from megatron_mmsr1.search.store.snapshot import export, import_

    store = Store(tmp_path / "a.sqlite")
    for at in range(0, 3000, 100):
        await store.put_many([(key(i), "page", key(i) * 100) for i in range(at, at + 100)])
    store.close()
    await asyncio.to_thread(export, tmp_path / "a.sqlite", tmp_path / "a.snap")
    script = (
        "import sys; from pathlib import Path; from megatron_mmsr1.search.store.snapshot import import_; print(flush=True);"
        "import_(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    target, rng = tmp_path / "b.sqlite", random.Random(0)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "a.snap"), str(target)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.communicate()
        if target.exists():  # it was whole before anyone could see it
            held = Store.open_readonly(target)
            assert held.counts() == {"page": 3000}
            held.close()
            for suffix in ("", "-wal", "-shm"):
                target.with_name(target.name + suffix).unlink(missing_ok=True)
    assert import_(tmp_path / "a.snap", target).added == 3000
    connection = sqlite3.connect(target)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
