"""One trainer a run directory: a lock file that names its holder's process and machine.

The file is made with link(2), which is atomic on NFS and Lustre too, where flock(2) may be missing. Its holder renews the
file's time of change. A holder on this machine is dead when its process is gone; one on another machine when its file has
not been renewed for STALE_S seconds, by the file system's own clock. To take a dead holder's lock over, a claim that carries
the dead holder's token is linked first: of several that try, one succeeds.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from megatron_mmsr1.errors import RunError

NAME = "lock.json"
RENEW_S = 15.0
STALE_S = 300.0
TOKEN = "MMSR1_LOCK"  # environment: the token of the lock that the launcher of these ranks holds


@dataclass(slots=True, frozen=True)
class Holder:
    pid: int
    host: str
    machine: str  # tells two machines (or two process namespaces) of one host name apart
    born: str  # when the process began, so that a process id that is used again is not taken for the holder
    command: str
    since: str
    token: str

    @classmethod
    def me(cls, command: str) -> Holder:
        pid = os.getpid()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(pid, socket.gethostname(), _machine(), _born(pid), command, since, secrets.token_hex(8))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.command}, since {self.since})"


class RunLock:
    """Holds RUN/lock.json from `__enter__` to `__exit__`.

    RunError at the start if a living trainer holds it, and from `check` once another has taken it over.
    """

    def __init__(self, directory: Path, command: str) -> None:
        self.path = directory / NAME
        self.holder = Holder.me(command)
        self._lost = ""
        self._done = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name="lock", daemon=True)

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mine = self.path.with_name(f".lock.{self.holder.token}")
        mine.write_text(json.dumps(asdict(self.holder)) + "\n")
        try:
            self._acquire(mine)
        finally:
            mine.unlink(missing_ok=True)
        self._renewal.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._done.set()
        self._renewal.join()
        if not self._lost and _token(self.path) == self.holder.token:
            self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise RunError if the lock is no longer ours."""
        if self._lost:
            raise RunError(
                f"{self.path} is held by {self._lost}: this process did not renew it for {STALE_S:g} s and lost it; it ends, "
                "so that two trainers do not write into one run"
            )

    def _acquire(self, mine: Path) -> None:
        if _link(mine, self.path):
            return
        first = read(self.path)
        if first is None and not self.path.exists():  # its holder has just ended
            return self._acquire(mine)
        if first is None:
            raise RunError(f"{self.path} is no lock file: remove it if no trainer runs in {self.path.parent}")
        before, claims = first, list[Path]()
        # Each claim names who took over from whom; the last of the chain is the holder now.
        while (claim := self._claim(before)).exists() and (after := read(claim)) is not None:
            claims.append(claim)
            before = after
        if alive(before, claims[-1] if claims else self.path, mine):
            raise RunError(
                f"{self.path.parent} is the output of a run that goes on: {before}. Wait for it, end it, or name another "
                "output="
            )
        claim = self._claim(before)
        # The second question is for one who took over, and withdrew the claim, since the lock was read.
        if not _link(mine, claim) or _token(self.path) != first.token:
            if _token(claim) == self.holder.token:
                claim.unlink()
            raise RunError(f"another process has just taken over {self.path}: {read(self.path)}")
        os.utime(mine)
        os.replace(mine, self.path)
        for old in [*claims, claim]:
            old.unlink(missing_ok=True)

    def _claim(self, holder: Holder) -> Path:
        return self.path.with_name(f".lock.after.{holder.token}")

    def _renew(self) -> None:
        while not self._done.wait(RENEW_S):
            found = read(self.path)
            if found is not None and found.token != self.holder.token:
                self._lost = str(found)
                return
            with contextlib.suppress(OSError):  # a file system that is away for a while
                os.utime(self.path)


@contextlib.contextmanager
def lock_of_ranks(directory: Path) -> Iterator[RunLock | None]:
    """For ranks that no launcher of ours started (srun): rank 0 holds the lock itself. None where that is not needed."""
    if os.environ.get("RANK", "0") != "0" or held_by_launcher(directory):
        yield None
        return
    with RunLock(directory, "megatron_mmsr1.train") as lock:
        yield lock


def read(path: Path) -> Holder | None:
    """Who holds the lock; None without a lock file or for one that is damaged."""
    try:
        return Holder(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def alive(holder: Holder, file: Path, now: Path) -> bool:
    """Whether the holder may still run. `file` is its lock, `now` a file just written on the same file system."""
    if holder.machine == _machine():
        return _born(holder.pid) == holder.born
    try:
        return now.stat().st_mtime - file.stat().st_mtime < STALE_S
    except FileNotFoundError:
        return False


def held_by_launcher(directory: Path) -> bool:
    """Whether the process that started this one holds the lock of `directory` for it."""
    token = os.environ.get(TOKEN)
    return bool(token) and _token(directory / NAME) == token


def _token(path: Path) -> str:
    found = read(path)
    return found.token if found else ""


def _link(source: Path, target: Path) -> bool:
    """Whether `target` is now another name of `source`; False if something else has that name."""
    links = source.stat().st_nlink
    try:
        os.link(source, target)
    except FileExistsError:
        return source.stat().st_nlink > links  # NFS may repeat a request whose answer was lost
    except OSError as e:
        raise RunError(f"{target} cannot be made ({e.strerror}): the file system of output= must allow hard links") from None
    return True


def _machine() -> str:
    """This boot of this machine, and the namespace that its process ids belong to."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)


def _born(pid: int) -> str:
    """When a process began, in the kernel's clock ticks; "" for one that is gone or has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else rest[18]
