"""One way to start, watch, restart and stop a process: engines, search servers, routers, gateways, ranks.

A `Command` says what is run and how one tells that it is ready and well; a `Service` runs it behind a guard, so that nothing
outlives this process. `start` waits until it is ready; `watch` does so in a thread, and starts it again when it ends or hangs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.procs.causes import error_in
from megatron_mmsr1.procs.child import Child, tail
from megatron_mmsr1.procs.liveness import Liveness
from megatron_mmsr1.procs.machine import HERE, Here, Machine, Process, Spawn
from megatron_mmsr1.procs.ports import port_is_free

POLL_S = 0.1
PORT_WAIT_S = 10.0  # what ended a moment ago may hold its port for a moment more
Probe = Callable[[str], bool]  # given the URL; does not raise, and answers within seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Spawn):
    """What is run. `name` begins every sentence about it ("the engine"), `url` is where it answers; with `listen` that is the
    socket's.

    `ready`: whether it can be used; a start fails after `ready_within_s` seconds, and the message names `ready_setting` where
    that is a setting. `alive`: asked every `alive_every_s` seconds once it is ready; silent for `hung_after_s`, it counts as
    hung. `refusal`: what its exit with code 2 means, where that is the person's error. `machine`: where it runs; the paths are
    the same there. The rest as `Spawn` has it.
    """

    url: str = ""
    ready: Probe | None = None
    ready_within_s: float = 120.0
    ready_setting: str = ""
    alive: Probe | None = None
    alive_every_s: float = 5.0
    hung_after_s: float = 120.0
    refusal: str = ""
    machine: Machine = HERE


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """`pause_s` before the second restart in a row, doubled each time up to `max_pause_s`; after `tries` starts in a row that
    came to nothing the service has failed. One that ran for `steady_s` was well: what ends it then is counted anew."""

    pause_s: float = 1.0
    max_pause_s: float = 30.0
    tries: int = 5
    steady_s: float = 60.0

    def pause(self, in_a_row: int) -> float:
        return 0.0 if in_a_row == 1 else min(self.max_pause_s, self.pause_s * 2 ** (in_a_row - 2))


class Stopped(Exception):
    """Raised in a start that is no longer wanted."""


class Service:
    """One command that runs. A context manager: leaving it stops it.

    `restarts`: how often `watch` has started it again. `failed`: what `watch` ended with; None while it goes on.
    """

    def __init__(self, command: Command, *, restart: RestartPolicy | None = None) -> None:
        self.command = command
        self.restart = restart or RestartPolicy()
        self.restarts = 0
        self.failed: UsageError | RunError | None = None
        self.started_s = 0.0  # seconds that the last start took
        self._process: Process | None = None
        self._liveness: Liveness | None = None
        self._log_from = 0  # where in its log the latest start begins
        self._port = command.listen[1] if command.listen else 0
        self._up = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        return self.command.name

    @property
    def log(self) -> Path:
        return self.command.log

    @property
    def url(self) -> str:
        """Where it answers, or will: known once it was started, and the same after a restart."""
        if self.command.listen is None:
            return self.command.url
        host = self.command.listen[0]
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    @property
    def process(self) -> Process:
        """Of the latest start. Raises ValueError before the first."""
        if self._process is None:
            raise ValueError(f"{self.name} was not started")
        return self._process

    @property
    def child(self) -> Child:
        """The same, of a service on this machine. Raises ValueError for one on another."""
        if not isinstance(self.process, Child):
            raise ValueError(f"{self.name} is not on this machine")
        return self.process

    @property
    def ended_badly(self) -> bool:
        """Whether its process has ended with another exit code than 0."""
        return self.process.ended and self.process.returncode != 0

    @property
    def up(self) -> bool:
        """Whether it is ready; after `start` until `stop`, under `watch` only while it answers."""
        return self._up.is_set()

    # ------------------------------------------------------------------------------------------------------------- start
    def start(self, progress: Callable[[float], None] | None = None) -> Self:
        """Start it and return once it is ready. `progress` is told the seconds waited, a few times a second; it may raise.

        Raises RunError with the end of the log if it dies or is not ready in time, UsageError if it refuses its arguments.
        Whatever is raised, Ctrl-C included, nothing of it stays.
        """
        began = time.monotonic()
        if self._thread is None:
            self._stop.clear()
        try:
            self._process = self._launch()
            self._until_ready(began, progress)
        except BaseException:
            self._end()
            raise
        if self.command.alive is not None:
            works, url = self.command.alive, self.url
            self._liveness = Liveness(lambda: works(url), self.command.alive_every_s)
        self.started_s = time.monotonic() - began
        self._up.set()
        return self

    def _launch(self) -> Process:
        c = self.command
        if self._process is not None and isinstance(c.machine, Here):  # a restart: clients know the port
            self._wait_for_port()
        self._log_from = c.log.stat().st_size if c.log.is_file() else 0
        listen = (c.listen[0], self._port) if c.listen is not None else None
        process, port = c.machine.launch(replace(c, listen=listen))
        self._port = port or self._port
        return process

    def _wait_for_port(self) -> None:
        at = urlsplit(self.url)
        if at.hostname is None or at.port is None:
            return
        until = time.monotonic() + PORT_WAIT_S
        while not port_is_free(at.port, at.hostname) and time.monotonic() < until:
            self._pause(POLL_S)

    def _until_ready(self, began: float, progress: Callable[[float], None] | None) -> None:
        c, child = self.command, self.process
        while c.ready is not None and not c.ready(self.url):
            waited = time.monotonic() - began
            if child.ended:
                said = error_in(c.log, self._log_from)
                if c.refusal and child.returncode == 2:
                    raise UsageError(f"{c.refusal}: {said or tail(c.log, 1).strip()} (its log: {c.log})")
                if said:
                    raise RunError(f"{c.name} did not start: {said} (its log: {c.log})")
                raise RunError(child.describe_end())
            if waited > c.ready_within_s:
                limit = f"{c.ready_setting}={c.ready_within_s:g}" if c.ready_setting else f"{c.ready_within_s:g}"
                at = f" at {self.url}" if self.url else ""
                raise RunError(f"{c.name}{at} was not ready within {limit} s; the end of its log, {c.log}:\n{tail(c.log)}")
            if progress is not None:
                progress(waited)
            self._pause(POLL_S)

    # --------------------------------------------------------------------------------------------------- check, wait, stop
    def check(self) -> None:
        """Raises RunError once it has ended (whatever its exit code) or hangs; under `watch`, what that ended with."""
        if self._thread is not None:
            if self.failed is not None:
                raise self.failed
            return
        self._check_child()

    def _check_child(self) -> None:
        if self.process.ended:
            raise RunError(self.process.describe_end())
        silent = self._liveness.silent_s if self._liveness is not None else 0.0
        if silent >= self.command.hung_after_s:
            raise RunError(
                f"{self.name} runs but has not answered for {silent:.0f} s; the last lines of its log, {self.log}:\n"
                f"{tail(self.log)}"
            )

    def ask_to_stop(self) -> None:
        """Without waiting, so that several stop at once."""
        self._stop.set()
        if self._process is not None:
            self._process.ask_to_end()

    def stop(self) -> None:
        """End it with all that it started, and wait for that; harmless if it has ended."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _end(self) -> None:
        self._up.clear()
        if self._liveness is not None:
            self._liveness.close()
            self._liveness = None
        if self._process is not None:
            self._process.end()

    # ------------------------------------------------------------------------------------------------------------- watch
    def watch(self, say: Callable[[str], None]) -> Self:
        """Return at once; a thread starts it (if `start` has not), watches it, and starts it again when it ends or hangs.

        `say` is told in a sentence when it ends and when it is back. A first start that fails is not repeated: what fails at
        once would fail again, and whoever waits wants to know. See `up` and `failed`.
        """
        self._thread = threading.Thread(target=self._keep_running, args=(say,), name=self.name, daemon=True)
        self._thread.start()
        return self

    def _keep_running(self, say: Callable[[str], None]) -> None:
        try:
            if not self.up:
                self.start()
            in_a_row = 0
            while True:
                began = time.monotonic()
                end = self._until_it_ends()
                in_a_row = 0 if time.monotonic() - began > self.restart.steady_s else in_a_row
                in_a_row = self._start_again(end, in_a_row, say)
        except Stopped:
            pass
        except (UsageError, RunError) as e:
            if not self._stop.is_set():  # else it ended because it was asked to
                self.failed = e
        except Exception as e:  # in a thread nobody else would hear of it
            self.failed = RunError(f"{self.name}: {type(e).__name__}: {e}")
        finally:
            self._end()

    def _start_again(self, end: UsageError | RunError, in_a_row: int, say: Callable[[str], None]) -> int:
        """How many starts in a row there were by now. Raises RunError once they are too many."""
        while True:
            self._pause(0.0)  # one that ended because it was asked to is not started again
            in_a_row += 1
            if in_a_row > self.restart.tries:
                raise RunError(f"{self.name} ended {self.restart.tries} times in a row; the last time:\n{end}")
            self.restarts += 1
            say(f"{end}\n{self.name} is started again ({self.restarts})")
            self._pause(self.restart.pause(in_a_row))
            try:
                self.start()
            except (UsageError, RunError) as e:
                end = e
                continue
            say(f"{self.name} is back at {self.url}" if self.url else f"{self.name} is back")
            return in_a_row

    def _until_it_ends(self) -> RunError:
        while True:
            try:
                self._check_child()
            except RunError as e:
                self._end()  # what it may have left running holds its port
                return e
            self._pause(POLL_S)

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped


def wait_all(services: Sequence[Service], *, poll: Callable[[], None] | None = None, poll_s: float = 0.2) -> None:
    """Wait until all have ended with exit code 0: for commands that are a job. `poll` is called meanwhile, and once after; it
    may show progress and check other services.

    Raises RunError once one has ended otherwise, and what `poll` raises.
    """
    while True:
        over = all(s.process.ended for s in services)
        for s in services:
            if s.ended_badly:
                raise RunError(s.process.describe_end())
        if poll is not None:
            poll()
        if over:
            return
        time.sleep(poll_s)
