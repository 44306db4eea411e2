"""Child processes that never outlive us: engines, search servers, trainers.

A `Supervisor` starts each command behind a guard (`guard.py`) in a session of its own, sends its output to a log, waits
until it answers, notices when it dies, and stops everything on the way out: at the end of the `with`, on Ctrl-C, on
SIGTERM, and, through the guard, when this process is killed outright.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.procs.guard import descendants
from megatron_mmsr1.procs.ports import HOST, free_port, port_is_free, require_port

__all__ = ["HOST", "Child", "Supervisor", "Terminated", "answers", "free_port", "port_is_free", "require_port", "tail"]

GUARD = Path(__file__).with_name("guard.py")


def answers(host: str, port: int, path: str, timeout_s: float = 1.0) -> bool:
    """Whether `path` is there with a 200, and without being redirected."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@dataclass(slots=True)
class Child:
    name: str
    process: subprocess.Popen[bytes]
    log: Path
    lifeline: int  # write end of the guard's pipe; -1 once closed

    @property
    def pid(self) -> int:
        """Of the guard, which is also its process group."""
        return self.process.pid

    def describe_end(self) -> str:
        code = self.process.returncode
        number = -code if code < 0 else code - 128
        how = f"was ended by {signal.Signals(number).name}" if 0 < number < 32 else f"ended with exit code {code}"
        return f"{self.name} {how}; the last lines of its log, {self.log}:\n{tail(self.log)}"


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log, indented; at most 16 KB of it are read."""
    if not path.is_file():
        return "  (no log)"
    with path.open("rb") as f:
        f.seek(max(0, path.stat().st_size - 16384))
        text = f.read().decode("utf-8", "replace")
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (empty)"


class Terminated(SystemExit):
    """SIGTERM or SIGHUP reached a supervising process; exits with 128 + the signal."""


class Supervisor:
    """Use as a context manager, in the main thread. `grace_s`: seconds from TERM to KILL."""

    def __init__(self, *, grace_s: float = 10.0) -> None:
        self.grace_s = grace_s
        self.children: dict[str, Child] = {}
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    @staticmethod
    def _on_signal(number: int, _frame: FrameType | None) -> None:
        raise Terminated(128 + number)

    def start(
        self, name: str, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Child:
        """Start `argv`; stdout and stderr are appended to `log`. `env` is added to this process's environment.

        Raises ValueError if a live child has that name. A command that does not exist shows at the next `check`.
        """
        if name in self.children and self.children[name].process.poll() is None:
            raise ValueError(f"a child named {name} runs already")
        log.parent.mkdir(parents=True, exist_ok=True)
        read, write = os.pipe()
        try:
            with log.open("ab") as out:
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(GUARD), str(read), str(self.grace_s), "-", "sglang_loads_", *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **(env or {})},
                    cwd=cwd,
                    pass_fds=(read,),
                    start_new_session=True,
                )
        finally:
            os.close(read)
        self.children[name] = Child(name, process, log, write)
        return self.children[name]

    def check(self, *, but: str = "") -> None:
        """Raise RunError if any child (but the one named) has ended, whatever its exit code."""
        for child in self.children.values():
            if child.name != but and child.process.poll() is not None:
                raise RunError(child.describe_end())

    def wait_healthy(self, name: str, url: str, *, deadline_s: float) -> None:
        """Return once `url` answers 2xx. RunError if any child dies first, or after `deadline_s` seconds."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy never leads to our own machine
        until = time.monotonic() + deadline_s
        reason = "no answer yet"
        while time.monotonic() < until:
            self.check()
            try:
                with opener.open(url, timeout=5):
                    return
            except urllib.error.HTTPError as e:
                reason = f"HTTP {e.code}"
            except (urllib.error.URLError, OSError) as e:
                reason = str(e)
            time.sleep(0.1)
        log = self.children[name].log
        raise RunError(
            f"{name} did not become healthy at {url} in {deadline_s:g} s ({reason}); the end of its log, {log}:\n{tail(log)}"
        )

    def wait(self, name: str, *, poll: Callable[[], None] | None = None, poll_s: float = 0.2) -> None:
        """Wait until child `name` ends with exit code 0; `poll` is called meanwhile (to show progress).

        Raises RunError if it ends otherwise or if any other child ends first.
        """
        child = self.children[name]
        while child.process.poll() is None:
            self.check(but=name)
            if poll:
                poll()
            time.sleep(poll_s)
        if poll:
            poll()
        if child.process.returncode != 0:
            raise RunError(child.describe_end())
        self._forget(name)

    def stop(self, name: str | None = None) -> None:
        """Stop one child, or all of them: TERM to each group, KILL to what is left after the grace time.

        A second Ctrl-C meanwhile kills at once.
        """
        going = [self.children[name]] if name else list(self.children.values())
        try:
            for child in going:
                self._let_go(child)
            for child in going:
                try:
                    child.process.wait(self.grace_s + 5)
                except subprocess.TimeoutExpired:
                    _kill(child)
        except KeyboardInterrupt:
            for child in going:
                _kill(child)
            raise
        for child in going:
            self._forget(child.name)

    def _forget(self, name: str) -> None:
        child = self.children.pop(name)
        self._let_go(child)
        if (child.process.returncode or 0) < 0:  # the guard itself was killed: its group is left to us
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    @staticmethod
    def _let_go(child: Child) -> None:
        if child.lifeline >= 0:
            os.close(child.lifeline)  # the guard ends the command when it sees this
            child.lifeline = -1


def _kill(child: Child) -> None:
    """KILL the guard and all below it, sessions of their own or not."""
    for pid in [*descendants(child.pid), child.pid]:
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.kill(pid, signal.SIGKILL)
    child.process.wait()
