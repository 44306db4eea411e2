"""The file system that a run writes to: speed, latency of small files, and what the run's lock and exports ask of it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_mmsr1.data import files
from megatron_mmsr1.doctor.check import Check, Finding, Level, Place, Who

BLOCK = 4 * 2**20
MOST_BYTES, MOST_S = 256 * 2**20, 3.0  # whichever comes first
SMALL_FILES, SMALL_S = 200, 5.0
SLOW_MB_S, SLOW_MS = 100.0, 100.0


def run(place: Place) -> list[Finding]:
    """In a directory of its own, which is removed. Raises OSError where nothing can be written."""
    where = place.directory
    free = shutil.disk_usage(where).free
    with tempfile.TemporaryDirectory(dir=where, prefix=".mmsr1-doctor-") as name:
        at = Path(name)
        return [
            Finding("directory", f"{where}, {kind(where)}, {free / 2**30:.1f} GiB free", data={"path": str(where)}),
            *_speed(at / "large", min(MOST_BYTES, free // 4)),
            _small(at),
            _links(at),
            _exchange(at),
        ]


def kind(directory: Path) -> str:
    """The type of its file system, as the kernel names it."""
    import psutil

    mounts = {p.mountpoint: p.fstype for p in psutil.disk_partitions(all=True)}
    return next((mounts[str(p)] for p in (directory, *directory.parents) if str(p) in mounts), "unknown file system")


def _speed(file: Path, most: int) -> list[Finding]:
    block = os.urandom(BLOCK)  # nothing that a file system could compress
    began, size = time.perf_counter(), 0
    with file.open("wb", buffering=0) as f:
        while size < max(most, BLOCK) and time.perf_counter() - began < MOST_S:
            size += f.write(block)
        os.fsync(f.fileno())
    write = size / (time.perf_counter() - began) / 1e6
    with file.open("rb", buffering=0) as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began, got = time.perf_counter(), 0
        while chunk := f.read(BLOCK):
            got += len(chunk)
        read = got / (time.perf_counter() - began) / 1e6
    slow = Level.WARNING if write < SLOW_MB_S else Level.OK
    advice = "every checkpoint waits for this: put output on a faster file system" if slow is Level.WARNING else ""
    said = f"{size / 2**20:.0f} MiB"
    return [
        Finding("write", f"{write:,.0f} MB/s ({said}, flushed)", slow, advice, data={"mb_s": write, "bytes": size}),
        Finding(
            "read",
            f"{read:,.0f} MB/s ({said}; a file system that keeps its cache when asked to drop it shows memory's speed)",
            data={"mb_s": read, "bytes": got},
        ),
    ]


def _small(at: Path) -> Finding:
    """What the run's small files cost: created, flushed, renamed, looked up."""
    took: list[float] = []
    until = time.perf_counter() + SMALL_S
    while len(took) < SMALL_FILES and (not took or time.perf_counter() < until):
        began = time.perf_counter()
        part, name = at / "part", at / f"small-{len(took)}"
        with part.open("wb", buffering=0) as f:
            f.write(b"x" * 64)
            os.fsync(f.fileno())
        part.rename(name)
        name.stat()
        took.append((time.perf_counter() - began) * 1e3)
    p50, p99 = percentile(took, 50), percentile(took, 99)
    slow = Level.WARNING if p99 > SLOW_MS else Level.OK
    advice = "runs write small files every step: keep at least search.cache on a local disk" if slow is Level.WARNING else ""
    value = f"p50 {p50:.2f} ms, p99 {p99:.2f} ms to create, flush, rename and look up one of {len(took)}"
    return Finding("small files", value, slow, advice, data={"p50_ms": p50, "p99_ms": p99, "files": len(took)})


def percentile(values: Sequence[float], p: int) -> float:
    """The smallest of the values that at least p percent of them do not exceed."""
    return sorted(values)[max(0, -(-len(values) * p // 100) - 1)]


def _links(at: Path) -> Finding:
    try:
        os.link(at / "large", at / "link")
    except OSError as e:
        return Finding("hard links", f"none ({e.strerror})", Level.ERROR, "a run's lock needs them: put output elsewhere")
    return Finding("hard links", "yes")


def _exchange(at: Path) -> Finding:
    for name in ("a", "b"):
        (at / name).mkdir()
    if files.exchange(at / "a", at / "b"):
        return Finding("directories exchanged", "in one step")
    advice = "a kill in the moment between two renames leaves exported weights aside; the next start puts them back"
    return Finding("directories exchanged", "by two renames", Level.WARNING, advice)


CHECK = Check("speed and latency of the file system of output", Who.NODES, run)
