"""A server of ours that is kept running: started in a thread of its own, watched, and started again when it dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from megatron_mmsr1.errors import RunError, UsageError

BACKOFF_S = 1.0  # before the second start in a row, doubled each time
MAX_BACKOFF_S = 30.0
GIVE_UP = 5  # starts in a row that came to nothing
STEADY_S = 60.0  # a server that lived so long was well: what ends it then is counted anew
WATCH_S = 0.2


class Service(Protocol):
    """`procs.service.Service` is such."""

    @property
    def url(self) -> str: ...
    def check(self) -> None: ...
    def stop(self) -> None: ...


class Stopped(Exception):
    """Raised in a start that is no longer wanted."""


# Starts the server and returns once it answers; it calls what it is given now and then, which may raise Stopped.
Start = Callable[[Callable[[], None]], Service]


class Restarting:
    """`start` must give the server the same URL each time. `say` is told, in a sentence, when it ends and when it is back.

    The first start is not repeated: what fails at once would fail again, and whoever waits wants to know. `failed` is its
    error, or that of the last start once GIVE_UP in a row came to nothing.
    """

    def __init__(self, name: str, start: Start, say: Callable[[str], None]):
        self.name, self.restarts = name, 0
        self.failed: UsageError | RunError | None = None
        self._start, self._say = start, say
        self._up = threading.Event()
        self._stop = threading.Event()
        self._service: Service | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def up(self) -> bool:
        return self._up.is_set()

    @property
    def url(self) -> str:
        """Of the server that is up."""
        assert self._service is not None
        return self._service.url

    def ask_to_stop(self) -> None:
        """Without waiting, so that several stop at once."""
        self._stop.set()

    def stop(self) -> None:
        """End the server with all that it started, and wait for it."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._service = self._start(self._wanted)
            self._up.set()
            self._watch_for_ever()
        except Stopped:
            pass
        except (UsageError, RunError) as e:
            self.failed = e
        except Exception as e:  # in a thread nobody else would hear of it
            self.failed = RunError(f"{self.name}: {type(e).__name__}: {e}")
        finally:
            self._up.clear()
            if self._service is not None:
                self._service.stop()

    def _watch_for_ever(self) -> None:
        in_a_row = 0
        while True:
            began = time.monotonic()
            end = self._until_it_ends()
            in_a_row = 0 if time.monotonic() - began > STEADY_S else in_a_row
            while True:
                in_a_row += 1
                if in_a_row > GIVE_UP:
                    raise RunError(f"{self.name} ended {GIVE_UP} times in a row; the last time:\n{end}")
                self.restarts += 1
                self._say(f"{end}\n{self.name} is started again ({self.restarts})")
                self._pause(0.0 if in_a_row == 1 else min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (in_a_row - 2)))
                try:
                    self._service = self._start(self._wanted)
                    break
                except (UsageError, RunError) as e:
                    end = e
            self._up.set()
            self._say(f"{self.name} is back at {self.url}")

    def _until_it_ends(self) -> RunError:
        service = self._service
        assert service is not None
        while True:
            try:
                service.check()
            except RunError as e:
                self._up.clear()
                service.stop()  # what it may have left running holds its port
                return e
            self._pause(WATCH_S)

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped

    def _wanted(self) -> None:
        if self._stop.is_set():
            raise Stopped
