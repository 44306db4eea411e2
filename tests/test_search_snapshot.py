"""Export and import: one file, the same for the same entries, checked whole before any of it is seen."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_fixtures import BACKENDS, held, key, make, rows

from megatron_mmsr1 import __version__
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.search.store.snapshot import Imported, export, import_
from megatron_mmsr1.search.store.store import KINDS, Store, StoreDamaged
from megatron_mmsr1.search.verbs import import_verb


# -------------------------------------------------------------------------------------------------------------- there and back
def test_there_and_back(tmp_path: Path) -> None:
    ident = make(tmp_path / "a.sqlite", rows(500), BACKENDS)
    manifest = export(tmp_path / "a.sqlite", tmp_path / "out" / "a.mmsr1snap")
    assert (manifest.id, sum(manifest.entries.values()), manifest.version) == (ident, 500, __version__)
    assert manifest.entries == {kind: len(range(i, 500, 6)) for i, kind in enumerate(KINDS)}
    assert manifest.backends["text"].name == "serper"
    done = import_(tmp_path / "out" / "a.mmsr1snap", tmp_path / "there" / "b.sqlite")
    assert done == Imported(manifest, ident, 500)
    assert held(tmp_path / "there" / "b.sqlite") == held(tmp_path / "a.sqlite")
    store = Store(tmp_path / "there" / "b.sqlite")
    assert all(store.get(k) == value for k, _, value in rows(500))
    assert json.loads(store.get_meta("backends") or "") == BACKENDS
    store.close()
    # Nothing beside it but what SQLite keeps for its readers.
    assert all(p.name.startswith("b.sqlite") for p in (tmp_path / "there").iterdir())
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.mmsr1snap"]


def test_the_file_is_an_ordinary_tar_that_says_what_it_is(tmp_path: Path) -> None:
    make(tmp_path / "a.sqlite", rows(30), BACKENDS)
    manifest = export(tmp_path / "a.sqlite", tmp_path / "a.mmsr1snap")
    with tarfile.open(tmp_path / "a.mmsr1snap") as tar:
        assert tar.getnames() == ["entries.zst", "manifest.json"]
        payload = tar.extractfile("entries.zst")
        said = tar.extractfile("manifest.json")
        assert payload is not None
        assert said is not None
        packed = payload.read()
        found = json.load(said)
    assert found["sha256"] == hashlib.sha256(packed).hexdigest() == manifest.sha256
    assert found["bytes"] == len(zstandard.ZstdDecompressor().decompressobj().decompress(packed))
    assert set(found) == {
        "format", "schema", "id", "entries", "contents", "bytes", "sha256", "created", "backends", "version"
    }  # fmt: skip


ENTRIES = st.lists(
    st.tuples(
        st.binary(min_size=32, max_size=32), st.sampled_from(KINDS), st.sampled_from([b"", b"a", b"b" * 100, b"c" * 5000])
    ),
    max_size=12,
    unique_by=lambda e: e[0],
)


@settings(max_examples=examples(20), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=ENTRIES, data=st.data())
def test_equal_entries_give_equal_bytes_there_and_back_again(tmp_path: Path, entries: Any, data: st.DataObject) -> None:
    for p in tmp_path.iterdir():
        p.unlink()
    make(tmp_path / "a.sqlite", entries)
    make(tmp_path / "b.sqlite", data.draw(st.permutations(entries)))
    one, other = (export(tmp_path / f"{n}.sqlite", tmp_path / f"{n}.snap") for n in "ab")
    assert (one.id, one.sha256, one.entries) == (other.id, other.sha256, other.entries)  # only `created` may differ
    import_(tmp_path / "a.snap", tmp_path / "c.sqlite")
    export(tmp_path / "c.sqlite", tmp_path / "c.snap")
    assert (tmp_path / "a.snap").read_bytes() == (tmp_path / "c.snap").read_bytes()


# ----------------------------------------------------------------------------------------------------------------- merging
def test_an_import_adds_to_the_store_that_is_there(tmp_path: Path) -> None:
    make(tmp_path / "a.sqlite", rows(300), BACKENDS)
    make(tmp_path / "b.sqlite", rows(300, first=200))
    both = make(tmp_path / "both.sqlite", rows(500))
    manifest = export(tmp_path / "a.sqlite", tmp_path / "a.snap")
    assert import_(tmp_path / "a.snap", tmp_path / "b.sqlite") == Imported(manifest, both, 200, present=100)
    assert held(tmp_path / "b.sqlite") == held(tmp_path / "both.sqlite")
    again = import_(tmp_path / "a.snap", tmp_path / "b.sqlite")  # as after an interruption
    assert again == Imported(manifest, both, 0, present=300)
    store = Store.open_readonly(tmp_path / "b.sqlite")
    assert json.loads(store.get_meta("backends") or "") == BACKENDS
    store.close()


def test_the_stores_own_value_stays_and_the_conflict_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "a.sqlite", [(key("a"), "text", b"new"), (key("b"), "text", b"b"), (key("c"), "page", b"c")])
    make(tmp_path / "b.sqlite", [(key("a"), "text", b"old"), (key("c"), "text", b"c")], {"text": {"name": "x", "version": "y"}})
    export(tmp_path / "a.sqlite", tmp_path / "a.snap")
    import_verb(str(tmp_path / "a.snap"), str(tmp_path / "b.sqlite"), True)
    said = json.loads(capsys.readouterr().out)
    assert (said["added"], said["present"], said["conflicts"]) == (1, 0, 2)
    store = Store(tmp_path / "b.sqlite")
    assert [store.get(key(k)) for k in "abc"] == [b"old", b"b", b"c"]
    assert store.counts() == {"text": 3}
    assert said["id"] == store.verify() != said["manifest"]["id"]
    assert json.loads(store.get_meta("backends") or "")["text"]["name"] == "x"
    store.close()
    import_verb(str(tmp_path / "a.snap"), str(tmp_path / "b.sqlite"), False)
    assert "2 keys had another value" in " ".join(capsys.readouterr().out.split())


# ------------------------------------------------------------------------------------------------------- beside a server
async def test_an_export_while_others_write_is_one_moment(tmp_path: Path) -> None:
    """Pairs are put together; a snapshot must never hold half of one, and must be whole."""
    store, stop = Store(tmp_path / "a.sqlite"), False

    async def write() -> None:
        i = 0
        while not stop:
            await store.put_many([(key(f"{side} {i}"), "page", f"{side} {i} ".encode() * 50) for side in "ab"])
            i += 1

    writing = asyncio.create_task(write())
    for n in range(6):
        await asyncio.sleep(0.02)
        before = store.counts().get("page", 0)
        manifest = await asyncio.to_thread(export, store.path, tmp_path / f"{n}.snap")
        assert manifest.entries["page"] % 2 == 0
        assert before <= manifest.entries["page"] <= store.counts()["page"]
        await asyncio.to_thread(import_, tmp_path / f"{n}.snap", tmp_path / f"{n}.sqlite")
        ident, found = held(tmp_path / f"{n}.sqlite")
        assert ident == manifest.id
        keys = {k for k, *_ in found}
        assert all((key(f"a {i}") in keys) == (key(f"b {i}") in keys) for i in range(before))
    stop = True
    await writing
    store.close()


async def test_an_import_into_a_store_at_work(tmp_path: Path) -> None:
    make_thread = asyncio.to_thread(make, tmp_path / "a.sqlite", rows(2000))
    await make_thread
    await asyncio.to_thread(export, tmp_path / "a.sqlite", tmp_path / "a.snap")
    store = Store(tmp_path / "b.sqlite")
    importing = asyncio.create_task(asyncio.to_thread(import_, tmp_path / "a.snap", store.path))
    i = 0
    while not importing.done():
        await store.put(key(f"own {i}"), "text", b"own")
        i += 1
    done = await importing
    assert done.added == 2000
    assert sum(store.counts().values()) == 2000 + i
    assert store.verify() == store.snapshot_id()
    assert all(store.get(k) == value for k, _, value in rows(2000))
    store.close()


# ------------------------------------------------------------------------------------------------------ what people do wrong
def test_the_persons_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no search store at .*none\.sqlite"):
        export(tmp_path / "none.sqlite", tmp_path / "a.snap")
    make(tmp_path / "a.sqlite", rows(3))
    (tmp_path / "there").touch()
    with pytest.raises(UsageError, match="there is there already"):
        export(tmp_path / "a.sqlite", tmp_path / "there")
    with pytest.raises(RunError, match=r"there/a\.snap cannot be written"):
        export(tmp_path / "a.sqlite", tmp_path / "there" / "a.snap")
    with pytest.raises(UsageError, match=r"no snapshot at .*none\.snap"):
        import_(tmp_path / "none.snap", tmp_path / "b.sqlite")
    export(tmp_path / "a.sqlite", tmp_path / "a.snap")
    (tmp_path / "b.sqlite").write_bytes(b"my own notes, which are no store" * 9)
    with pytest.raises(RunError, match=r"b\.sqlite is damaged \(file is not a database\)"):
        import_(tmp_path / "a.snap", tmp_path / "b.sqlite")
    assert (tmp_path / "b.sqlite").read_bytes().startswith(b"my own notes")
    with pytest.raises(RunError, match=r"a\.sqlite was not imported: it is no snapshot"):
        import_(tmp_path / "a.sqlite", tmp_path / "c.sqlite")
    assert not (tmp_path / "c.sqlite").exists()


def test_a_write_ahead_log_without_its_store_is_not_mixed_in(tmp_path: Path) -> None:
    make(tmp_path / "a.sqlite", rows(3))
    export(tmp_path / "a.sqlite", tmp_path / "a.snap")
    (tmp_path / "b.sqlite-wal").write_bytes(b"of a store that was removed")
    with pytest.raises(RunError, match=r"b\.sqlite-wal is left of a store that is gone.*remove it"):
        import_(tmp_path / "a.snap", tmp_path / "b.sqlite")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE contents SET data = (SELECT data FROM contents LIMIT 1), size = (SELECT size FROM contents LIMIT 1)",
        "UPDATE contents SET size = size + 1",
        "DELETE FROM contents",
        "DELETE FROM entries WHERE kind = 'text'",
        "UPDATE meta SET value = '[]'",
        'UPDATE meta SET value = \'{"text": {"name": "\\u001b[2J", "version": "1"}}\'',
    ],
)
def test_a_damaged_store_is_not_exported(tmp_path: Path, statement: str) -> None:
    make(tmp_path / "a.sqlite", rows(10), BACKENDS)
    db = sqlite3.connect(tmp_path / "a.sqlite", isolation_level=None)
    db.execute(statement)
    db.close()
    with pytest.raises(StoreDamaged, match=r"a\.sqlite is damaged"):
        export(tmp_path / "a.sqlite", tmp_path / "a.snap")
    assert not [p for p in tmp_path.iterdir() if "snap" in p.name]
