"""Snapshots from strangers: whatever they hold, they are refused with a reason, or mean what they say; nothing else happens."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_fixtures import held, make, rows

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.search.store.snapshot import import_
from megatron_mmsr1.search.store.store import Store

MAGIC = b"mmsr1 snapshot payload 1\n"
CONTENT = hashlib.sha256(b"value").digest()


def content(value: bytes, size: int | None = None) -> bytes:
    return b"C" + (len(value) if size is None else size).to_bytes(4, "little") + value


def entry(k: bytes, digest: bytes = CONTENT, kind: bytes = b"text") -> bytes:
    return b"E" + k + digest + bytes([len(kind)]) + kind


def ident(*entries: tuple[bytes, bytes, bytes]) -> str:
    """As the documentation says it: sha256 over schema, sum of the entries' hashes, number of entries."""
    total = sum(int.from_bytes(hashlib.sha256(k + kind + digest).digest()) for k, kind, digest in entries) % 2**256
    return hashlib.sha256(f"2 {total:064x} {len(entries)}".encode()).hexdigest()[:16]


GOOD = MAGIC + content(b"value") + entry(bytes(32)) + b"."


def member(name: str, data: bytes, size: int | None = None, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data) if size is None else size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def archive(payload: bytes = GOOD, *, packed: bytes | None = None, **changes: Any) -> bytes:
    packed = zstandard.ZstdCompressor().compress(payload) if packed is None else packed
    return member("entries.zst", packed) + member("manifest.json", manifest_of(payload, packed, **changes)) + bytes(1024)


def manifest_of(payload: bytes, packed: bytes, **changes: Any) -> bytes:
    facts: dict[str, Any] = {
        "format": "mmsr1-snapshot 1",
        "schema": 2,
        "id": ident((bytes(32), b"text", CONTENT)),
        "entries": {"text": 1},
        "contents": 1,
        "bytes": len(payload),
        "sha256": hashlib.sha256(packed).hexdigest(),
        "created": "2026-01-02T03:04:05Z",
        "backends": {},
        "version": "0",
    }
    return json.dumps({k: v for k, v in {**facts, **changes}.items() if v != "-"}).encode()


def bomb(size: int) -> bytes:
    """A frame of a few bytes a megabyte that says nothing of its size."""
    out = zstandard.ZstdCompressor(level=1).compressobj()
    parts = [out.compress(MAGIC + b"C" + (60 << 20).to_bytes(4, "little"))]
    parts += [out.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    return b"".join([*parts, out.flush()])


def wide_window() -> bytes:
    """A frame that wants 2 GiB of memory to be read."""
    settings = zstandard.ZstdCompressionParameters(window_log=31, compression_level=1, write_content_size=False)
    out = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return out.compress(GOOD) + out.flush()


PACKED = zstandard.ZstdCompressor().compress(GOOD)
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "no snapshot"),
    "zeros": (lambda: bytes(4096), "no snapshot"),
    "noise": (lambda: bytes(range(256)) * 40, "no snapshot"),
    "a path": (lambda: archive().replace(b"entries.zst", b"../../x.zst", 1), "no snapshot"),
    "a path, header right": (lambda: member("../../../tmp/x", PACKED), r"holds '\.\./\.\./\.\./tmp/x'"),
    "an absolute path": (lambda: member("/etc/passwd", PACKED), "holds '/etc/passwd'"),
    "a link": (lambda: member("entries.zst", b"", kind=tarfile.SYMTYPE, link="/etc/passwd"), "holds 'entries.zst'"),
    "a hard link": (lambda: member("entries.zst", b"", kind=tarfile.LNKTYPE, link="/etc/passwd"), "holds 'entries.zst'"),
    "a device": (lambda: member("entries.zst", b"", kind=tarfile.CHRTYPE), "holds 'entries.zst'"),
    "a sparse file": (lambda: member("entries.zst", b"", kind=tarfile.GNUTYPE_SPARSE), "holds 'entries.zst'"),
    "a long name's header": (lambda: member("././@LongLink", b"x" * 600, kind=tarfile.GNUTYPE_LONGNAME), "@LongLink"),
    "a huge member": (lambda: member("entries.zst", PACKED, size=1 << 60), "ends early"),
    "a negative member": (lambda: member("entries.zst", PACKED, size=-(1 << 20)), "ends early"),
    "no manifest": (lambda: member("entries.zst", PACKED), "no snapshot"),
    "another second member": (lambda: member("entries.zst", PACKED) + member("x", b"{}"), "holds 'x'"),
    "a huge manifest": (lambda: member("entries.zst", PACKED) + member("manifest.json", b" " * (1 << 21)), "2097152 bytes"),
    "a manifest of noise": (lambda: member("entries.zst", PACKED) + member("manifest.json", b"\xff{"), "manifest is wrong"),
    "a deep manifest": (lambda: member("entries.zst", PACKED) + member("manifest.json", b"[" * 100_000), "manifest is wrong"),
    "a key more": (lambda: archive(more=1), "manifest is wrong: more"),
    "a key less": (lambda: archive(id="-"), "manifest is wrong: id"),
    "a false type": (lambda: archive(bytes="many"), "manifest is wrong: bytes"),
    "negative bytes": (lambda: archive(bytes=-1), "manifest is wrong: bytes"),
    "negative entries": (lambda: archive(entries={"text": -1}), "manifest is wrong: entries"),
    "no time": (lambda: archive(created="2026-13-02T03:04:05Z"), "manifest is wrong: created"),
    "terminal codes": (lambda: archive(backends={"text": {"name": "\x1b[2J", "version": "1"}}), "control characters"),
    "a later format": (lambda: archive(format="mmsr1-snapshot 9"), "'mmsr1-snapshot 9' of schema 2, and this version reads"),
    "a later schema": (lambda: archive(schema=3), "schema 3, and this version reads"),
    "another hash": (lambda: archive(sha256="0" * 64), "does not have the sha256"),
    "another id": (lambda: archive(id="0" * 16), "do not have the id"),
    "other counts": (lambda: archive(entries={"text": 2}), "not as many"),
    "other kinds": (lambda: archive(entries={"page": 1}), "not as many"),
    "other contents": (lambda: archive(contents=2), "not as many"),
    "fewer bytes than are there": (lambda: archive(bytes=len(GOOD) - 1), "larger than its manifest says"),
    "more bytes than are there": (lambda: archive(bytes=len(GOOD) + 1), "does not end where"),
    "no zstd": (lambda: archive(packed=b"not compressed at all"), "cannot be decompressed"),
    "half a frame": (lambda: archive(packed=PACKED[: len(PACKED) // 2]), "ends early"),
    "another magic": (lambda: archive(GOOD.replace(b"payload", b"PAYLOAD")), "none of this project"),
    "an unknown record": (lambda: archive(MAGIC + b"X."), "does not end where"),
    "no end": (lambda: archive(GOOD[:-1]), "larger than its manifest"),
    "more after the end": (lambda: archive(GOOD + b"more"), "does not end where"),
    "a value over the cap": (lambda: archive(MAGIC + content(b"", size=(64 << 20) + 1)), "67108865 bytes; 67108864"),
    "a value that is not there": (lambda: archive(MAGIC + content(b"ab", size=1000)), "larger than its manifest says"),
    "contents twice": (lambda: archive(MAGIC + content(b"value") * 2 + entry(bytes(32)) + b"."), "not in order"),
    "a key twice": (lambda: archive(MAGIC + content(b"value") + entry(bytes(32)) * 2 + b"."), "not in order"),
    "keys out of order": (lambda: archive(MAGIC + content(b"value") + entry(b"\1" * 32) + entry(bytes(32)) + b"."), "order"),
    "a kind of markup": (lambda: archive(MAGIC + content(b"value") + entry(bytes(32), kind=b"[b]") + b"."), r"kind '\[b\]'"),
    "no kind": (lambda: archive(MAGIC + content(b"value") + entry(bytes(32), kind=b"") + b"."), "kind ''"),
    "another value": (lambda: archive(GOOD.replace(b"value", b"VALUE")), "entries have no content"),
    "no value": (lambda: archive(MAGIC + entry(bytes(32)) + b".", contents=0), "entries have no content"),
    "a value of nobody": (
        lambda: archive(MAGIC + ordered(content(b"value"), content(b"x")) + entry(bytes(32)) + b".", contents=2),
        "contents belong to no entry",
    ),
    "a bomb": (lambda: archive(packed=bomb(1 << 30), bytes=1 << 20), "larger than its manifest says"),
    "an honest bomb": (lambda: archive(packed=bomb(1 << 30), bytes=1 << 40), "unpacks to 1099511627776 bytes"),
    "a wide window": (lambda: archive(packed=wide_window()), "cannot be decompressed"),
}  # fmt: skip


def ordered(*contents: bytes) -> bytes:
    in_order = sorted(contents, key=lambda c: hashlib.sha256(c[5:]).digest())
    return b"".join(in_order)


def test_the_archives_below_would_be_good(tmp_path: Path) -> None:
    """Else the refusals below would show nothing."""
    (tmp_path / "a.snap").write_bytes(archive())
    assert import_(tmp_path / "a.snap", tmp_path / "a.sqlite").added == 1
    store = Store.open_readonly(tmp_path / "a.sqlite")
    assert store.get(bytes(32)) == b"value"
    store.close()


@pytest.mark.long
@pytest.mark.parametrize(("make_it", "why"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_archive_is_refused_and_adds_nothing(tmp_path: Path, make_it: Callable[[], bytes], why: str) -> None:
    file, fresh, old = tmp_path / "a.snap", tmp_path / "new.sqlite", tmp_path / "old.sqlite"
    file.write_bytes(make_it())
    before = make(old, rows(5))
    for target in (fresh, old):
        with pytest.raises(RunError, match=rf"(?s)a\.snap was not imported: .*{why}"):
            import_(file, target)
    assert held(old)[0] == before
    assert {p.name.removesuffix("-wal").removesuffix("-shm") for p in tmp_path.iterdir()} == {"a.snap", "old.sqlite"}


BOMB_SQUAD = """
import resource, sys
from pathlib import Path
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.search.store.snapshot import import_
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file in sys.argv[2:]:
    try:
        import_(Path(file), Path(sys.argv[1]))
    except RunError:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_bombs_cost_little_memory(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(archive(packed=bomb(1 << 30), bytes=1 << 20))
    (tmp_path / "b").write_bytes(archive(packed=bomb(1 << 30), bytes=1 << 29))
    (tmp_path / "c").write_bytes(archive(packed=wide_window()))
    command = [sys.executable, "-c", BOMB_SQUAD, str(tmp_path / "s.sqlite"), *(str(tmp_path / n) for n in "abc")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < 400  # MiB; a value may have 64, and is held a few times over


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(archive()) - 1), bit=st.integers(0, 7), cut=st.booleans())
def test_a_file_that_was_damaged_on_its_way_is_refused_or_means_the_same(tmp_path: Path, at: int, bit: int, cut: bool) -> None:
    raw = archive()
    for p in tmp_path.iterdir():
        p.unlink()
    (tmp_path / "a.snap").write_bytes(raw[:at] if cut else raw[:at] + bytes([raw[at] ^ (1 << bit)]) + raw[at + 1 :])
    try:
        done = import_(tmp_path / "a.snap", tmp_path / "b.sqlite")
    except RunError as e:
        assert "was not imported" in str(e)
        assert not (tmp_path / "b.sqlite").exists()
    else:  # a digit of the manifest's version or time, or padding
        store = Store.open_readonly(tmp_path / "b.sqlite")
        assert (done.id, store.verify(), store.get(bytes(32))) == (ident((bytes(32), b"text", CONTENT)),) * 2 + (b"value",)
        store.close()
