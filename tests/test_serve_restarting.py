"""A server that is kept running: what a person is told, how often it is tried, what is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from megatron_mmsr1.errors import RunError, UsageError
from serving import restarting
from serving.restarting import GIVE_UP, Restarting, Stopped


@dataclass
class Scripted:
    """A service that lives until `die`; `starts` of them, then the start fails."""

    starts: int
    made: int = 0
    alive: threading.Event = field(default_factory=threading.Event)
    stopped: int = 0
    url: str = "http://127.0.0.1:1"

    def start(self, wanted: Callable[[], None]) -> Scripted:
        wanted()
        self.made += 1
        if self.made > self.starts:
            raise RunError("it does not start")
        self.alive.set()
        return self

    def die(self) -> None:
        self.alive.clear()

    def check(self) -> None:
        if not self.alive.is_set():
            raise RunError("it was killed")

    def stop(self) -> None:
        self.stopped += 1


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(restarting, "WATCH_S", 0.01)
    monkeypatch.setattr(restarting, "BACKOFF_S", 0.01)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_dies_is_started_again_and_said():
    said: list[str] = []
    s = Scripted(starts=10)
    k = Restarting("it", s.start, said.append)
    for n in range(1, 3):
        until(lambda: k.up)
        s.die()
        until(lambda n=n: k.restarts == n)
    until(lambda: k.up and len(said) == 4)
    assert "it was killed" in said[0] and "(1)" in said[0] and "back" in said[1]
    k.stop()
    assert not k.up and k.failed is None and s.stopped == 3  # each of the dead, and the last


def test_it_gives_up_in_the_end():
    s = Scripted(starts=1)
    k = Restarting("it", s.start, lambda _: None)
    until(lambda: k.up)
    s.die()
    until(lambda: k.failed is not None)
    assert k.restarts == GIVE_UP and "it does not start" in str(k.failed) and not k.up
    k.stop()


def test_one_that_was_well_for_long_is_counted_anew(monkeypatch):
    monkeypatch.setattr(restarting, "STEADY_S", 0.0)
    s = Scripted(starts=100)
    k = Restarting("it", s.start, lambda _: None)
    for n in range(GIVE_UP + 3):
        until(lambda n=n: k.up and s.made == n + 1)
        s.die()
        until(lambda n=n: k.restarts == n + 1)
    until(lambda: k.up)
    assert k.failed is None
    k.stop()


@pytest.mark.parametrize("error", [UsageError("a wrong name"), RunError("no memory"), OSError("a defect")])
def test_a_first_start_that_fails_is_not_repeated(error):
    calls = []

    def start(wanted):
        calls.append(1)
        raise error

    k = Restarting("it", start, lambda _: None)
    until(lambda: k.failed is not None)
    assert len(calls) == 1 and str(error) in str(k.failed)
    k.stop()


def test_a_start_that_is_no_longer_wanted():
    entered = threading.Event()

    def start(wanted):
        while True:
            entered.set()
            wanted()
            time.sleep(0.005)

    k = Restarting("it", start, lambda _: None)
    assert entered.wait(20)
    k.stop()
    assert k.failed is None and not k.up


def test_stopped_is_no_error_of_ours():
    assert not issubclass(Stopped, UsageError | RunError)
