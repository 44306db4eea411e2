"""Why a process ended, as far as this machine can tell: a full disk, full shared memory, a lack of memory."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from megatron_mmsr1.errors import FULL

SHARED_MEMORY = Path("/dev/shm")
FULL_BYTES = 2**20  # what is left on a disk on which nothing useful can be written any more
ERROR_CHARS = 1000
_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_FULL = tuple(os.strerror(n) for n in FULL)


def memory_kills() -> int:
    """How often the kernel has ended a process for lack of memory: in this control group where that is told, else at all."""
    for path in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue  # another kernel, or a container that shows none of it
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


def is_full(directory: Path) -> bool:
    """Whether the file system of `directory` has no room or no inodes left."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize < FULL_BYTES or (found.f_files > 0 and found.f_favail == 0)


def said_signal(code: int) -> signal.Signals | None:
    """The signal that an exit code tells of: -n of Popen, 128 + n of a shell, a guard or torchrun."""
    number = -code if code < 0 else code - 128
    return signal.Signals(number) if 0 < number < 32 else None


def cause(code: int, log: Path, kills_before: int) -> str:
    """A sentence on why a process ended with `code`, or "" where nothing tells.

    `log`: what it wrote; its last lines are read, and its disk is looked at. `kills_before`: `memory_kills()` when it started.
    """
    if is_full(log.parent):
        return f"The disk that holds {log.parent} is full: make room on it."
    if any(words in _end(log) for words in _FULL):
        return "A disk that it wrote to is full, or the quota there is used up (see the log): make room on it."
    kills = memory_kills() - kills_before
    if kills > 0:
        ended = f"{kills} process{'es' if kills > 1 else ''}"
        return f"The kernel has ended {ended} for lack of memory since it started: give it more memory, or less to do at once."
    if said_signal(code) is signal.SIGBUS and is_full(SHARED_MEMORY):
        return f"Shared memory ({SHARED_MEMORY}) is full: make room there, or give the container more (--shm-size)."
    if said_signal(code) is signal.SIGKILL:
        return "The kernel counts no process ended for lack of memory: somebody sent SIGKILL (kill -9, or a scheduler's limit)."
    return ""


def error_in(log: Path, start: int = 0) -> str:
    """The error of the first Python traceback in `log` from byte `start` on, as its last line has it; "" without one.

    The first, because processes that end for want of another one write theirs after it; of errors that were raised while
    another was handled, the last.
    """
    said, inside, chained = "", False, False
    if not log.is_file():
        return ""
    with log.open("rb") as f:
        f.seek(start)
        for raw in f:
            line = raw.decode("utf-8", "replace").rstrip()
            if line.endswith(_TRACEBACK):
                if said and not chained:
                    break
                inside, chained = True, False
            elif inside and line and not line[0].isspace():
                said, inside = line[:ERROR_CHARS], False
            elif line.startswith(_CHAINED):
                chained = True
    return said


def _end(log: Path) -> str:
    try:
        with log.open("rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - 16384))
            return f.read().decode("utf-8", "replace")
    except OSError:
        return ""
