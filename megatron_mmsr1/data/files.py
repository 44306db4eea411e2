"""Files and directories that are complete or not there: written beside their place, flushed, and renamed into it.

A reader, and whoever looks after a crash, finds the old content or the new one, never a part of either. What an interrupted
write leaves is hidden (`.NAME…part`). The standard library alone, so that every room may use it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>
# What renameat2(2) says where the kernel or the file system cannot exchange two names (NFS, some Lustre and overlay mounts).
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


@contextlib.contextmanager
def unfinished(path: Path, *, mode: int = 0o644, sync: bool = True) -> Generator[Path]:
    """The path of an empty file to write instead of `path`, for writers that open a path themselves.

    At the end of the block it takes the place of `path`, with the permissions `mode`; if the block raises, it is removed and
    `path` stays as it was. `sync`: on disk before it is renamed, so that a power cut leaves one of the two as well. Missing
    parents are made. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(mode)  # that of mkstemp, and of some writers, is private
        if sync:
            flush(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if sync:
        flush(path.parent)


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o644, sync: bool = True) -> Generator[BinaryIO]:
    """A binary file to write to, as `unfinished` has it."""
    with unfinished(path, mode=mode, sync=sync) as part, part.open("wb") as f:
        yield f
        f.flush()


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write or replace a file, whole. Raises OSError."""
    with replacing(path, sync=sync) as f:
        f.write(data)


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode(), sync=sync)


# --------------------------------------------------------------------------------------------------------------- directories
@contextlib.contextmanager
def building(target: Path, *, sync: bool = True) -> Generator[Path]:
    """An empty directory to fill instead of `target`, whose place it takes at the end of the block; if the block raises it is
    removed, and `target` stays as it was. One builder of a target at a time. Raises OSError."""
    part = fresh_directory(target)
    try:
        yield part
        replace_directory(part, target, sync=sync)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def part_of(target: Path) -> Path:
    """Where `fresh_directory` makes the next content of `target`."""
    return target.with_name(f".{target.name}.part")


def fresh_directory(target: Path) -> Path:
    """An empty directory beside `target` for its next content, always of the same name, so that what an interrupted write
    left is cleared away. For builders of several processes, of which one makes it; else use `building`."""
    restore(target)
    part = part_of(target)
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    return part


def replace_directory(part: Path, target: Path, *, sync: bool = True) -> None:
    """Put the directory `part` in the place of `target`, and remove what stood there.

    With RENAME_EXCHANGE there is no moment without a whole `target`. Where the file system has none, a warning says so:
    `target` is then renamed aside first, and if this process dies before the second rename `restore` brings it back. Both must
    be on one file system. Raises OSError.
    """
    if sync:
        for directory, _, files in os.walk(part):
            for name in files:
                flush(Path(directory, name))
            flush(Path(directory))
    if not target.exists():
        part.rename(target)
        aside = None
    elif exchange(part, target):
        aside = part
    else:
        log.warning(
            "%s: this file system cannot exchange two directories. For a moment %s is not there; if the process is killed just "
            "then, its content stands at %s",
            target.parent,
            target.name,
            _aside(target),
        )
        aside = _aside(target)
        target.rename(aside)
        part.rename(target)
    if sync:
        flush(target.parent)
    if aside is not None:
        shutil.rmtree(aside)


def restore(target: Path) -> None:
    """Undo half of a replacement by two renames that a crash has cut short; nothing where there was none."""
    aside = _aside(target)
    if aside.exists():
        if target.exists():
            shutil.rmtree(aside)
        else:
            log.warning("%s was being replaced when the process died: its former content is put back", target)
            aside.rename(target)


def exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step; False where the file system cannot. Raises OSError for everything else."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):  # a C library without it
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(a), None, str(b))


def flush(path: Path) -> None:
    """Wait until a file's content, or a directory's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
