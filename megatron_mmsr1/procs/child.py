"""One process of ours behind a guard (`guard.py`): started, ended, and how its end is told."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_mmsr1.procs.causes import cause, memory_kills, said_signal
from megatron_mmsr1.procs.guard import descendants
from megatron_mmsr1.procs.stacks import RankState, of_ranks

KILL_S = 5.0  # how long processes may take to go that were killed
GUARD = Path(__file__).with_name("guard.py")


class Child:
    """Started when it is made. Nothing that it starts outlives it, or this process, however either ends.

    `env` is the whole environment; stdout and stderr are appended to `log`; `inherits` are descriptors that it keeps open;
    `shared` are beginnings of names in /dev/shm that are removed after it; `grace_s` is the time from SIGTERM to SIGKILL. It
    has a temporary directory of its own, which goes with it. A command that does not exist shows as an end with exit code 127.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str],
        cwd: Path | None = None,
        inherits: Sequence[int] = (),
        shared: Sequence[str] = (),
        grace_s: float = 10.0,
    ) -> None:
        self.name, self.log, self.grace_s = name, log, grace_s
        self._kills = memory_kills()
        log.parent.mkdir(parents=True, exist_ok=True)
        read, self._lifeline = os.pipe()
        numbers = ",".join(map(str, inherits)) or "-"
        try:
            with log.open("ab") as out:
                self.process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(GUARD), str(read), str(grace_s), numbers, ",".join(shared) or "-", *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env={"TORCHINDUCTOR_CACHE_DIR": str(_compiled()), **env},
                    cwd=cwd,
                    pass_fds=(read, *inherits),
                    start_new_session=True,
                )
        except BaseException:
            self._let_go()
            raise
        finally:
            os.close(read)

    @property
    def pid(self) -> int:
        """Of the guard, which is also its process group."""
        return self.process.pid

    @property
    def command_pid(self) -> int:
        """Of the command itself, the guard's first child. Raises IndexError once it has ended."""
        return descendants(self.pid)[0]

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def returncode(self) -> int:
        """Of a child that has ended; 128 + n after signal n."""
        return self.process.wait()

    def describe_end(self) -> str:
        """How a child that has ended did so, what caused it where that can be told, and the last lines of its log."""
        number = said_signal(self.returncode)
        how = f"was ended by {number.name}" if number else f"ended with exit code {self.returncode}"
        why = cause(self.returncode, self.log, self._kills)
        return f"{self.name} {how}{'. ' + why if why else ''}; the last lines of its log, {self.log}:\n{tail(self.log)}"

    def why(self) -> str:
        """What caused the end, as a sentence; "" where nothing tells."""
        return cause(self.returncode, self.log, self._kills)

    def ranks(self) -> list[RankState]:
        """The ranks below it as they are now, with their stacks."""
        return of_ranks(self.pid)

    def ask_to_end(self) -> None:
        """SIGTERM to all of it, without waiting; the guard sends SIGKILL after the grace time."""
        self._let_go()

    def end(self) -> None:
        """End it with all that it started, and wait for that. A Ctrl-C meanwhile kills at once. Harmless if it has ended."""
        self._let_go()
        try:
            self.process.wait(self.grace_s + 5)
        except subprocess.TimeoutExpired:
            self.kill()
        except KeyboardInterrupt:
            self.kill()
            raise
        if self.process.returncode < 0:  # the guard itself was killed: its group is left to us
            self._kill_group()

    def kill(self) -> None:
        """SIGKILL to the guard and all below it, sessions of their own or not."""
        for pid in [*descendants(self.pid), self.pid]:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._let_go()

    def _kill_group(self) -> None:
        until = time.monotonic() + KILL_S
        with contextlib.suppress(ProcessLookupError):  # none is left
            while _live(self.pid) and time.monotonic() < until:
                os.killpg(self.pid, signal.SIGKILL)
                time.sleep(0.01)

    def _let_go(self) -> None:
        held, self._lifeline = self._lifeline, -1  # at once: a service's thread and its owner's may both come here
        if held >= 0:
            os.close(held)  # the guard ends the command when it sees this


def _live(group: int) -> bool:
    """Whether a process of the group runs; one that waits to be collected does not."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended after the listing
                state, _, found = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:3]
                if int(found) == group and state != "Z":
                    return True
    return False


def _compiled() -> Path:
    """Where compiled kernels are kept for the next run: by default torch has them in the temporary directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmsr1" / "torchinductor"


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log, indented; at most 16 KB of it are read."""
    if not path.is_file():
        return "  (no log)"
    with path.open("rb") as f:
        f.seek(max(0, path.stat().st_size - 16384))
        text = f.read().decode("utf-8", "replace")
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (empty)"
