"""The circuit breaker, with a clock of the test's own."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.upstream.limits import MAX_COOLDOWN_S, Breaker
from megatron_mmsr1.trajectory import ToolStatus


class Rig:
    def __init__(self, failures: int = 3, cooldown_s: float = 5.0):
        self.now = 100.0
        self.turns: list[str] = []
        self.breaker = Breaker("brave", failures, cooldown_s, self.turns.append, lambda: self.now)

    def fail(self, n: int = 1) -> None:
        for _ in range(n):
            self.breaker.failed(self.breaker.admit(), "HTTP 503")

    def refused(self) -> bool:
        try:
            self.breaker.check()
        except SearchFailure as e:
            assert e.status is ToolStatus.UPSTREAM_ERROR
            assert e.retry is None
            return True
        return False


def test_failures_in_a_row_open_it() -> None:
    rig = Rig()
    rig.fail(2)
    rig.breaker.succeeded(rig.breaker.admit())
    rig.fail(2)
    assert (rig.breaker.state, rig.turns) == ("closed", [])
    rig.fail()
    assert (rig.breaker.state, rig.turns) == ("open", ["open"])
    with pytest.raises(SearchFailure, match=r"brave keeps failing and is left alone \(next try in 5\.0 s\): HTTP 503"):
        rig.breaker.admit()


def test_one_probe_decides() -> None:
    rig = Rig()
    rig.fail(3)
    rig.now += 4.9
    assert rig.refused()
    rig.now += 0.1
    assert not rig.refused()
    assert rig.breaker.state == "open"  # to look is not to go
    probe = rig.breaker.admit()
    assert rig.breaker.state == "half_open"
    assert rig.refused()
    rig.breaker.failed(probe, "again")
    rig.now += 9.9  # twice as long now
    assert rig.refused()
    rig.now += 0.1
    rig.breaker.succeeded(rig.breaker.admit())
    assert rig.turns == ["open", "half_open", "open", "half_open", "closed"]
    rig.fail(3)
    rig.now += 5.0  # and from the start again
    assert not rig.refused()


def test_an_abandoned_probe_gives_its_place_back() -> None:
    rig = Rig()
    rig.fail(3)
    rig.now += 5
    for _ in range(3):
        rig.breaker.abandoned(rig.breaker.admit())
        assert not rig.refused()
    assert rig.turns == ["open", "half_open"]
    probe = rig.breaker.admit()
    assert rig.refused()
    rig.breaker.succeeded(probe)
    assert rig.breaker.state == "closed"


@pytest.mark.parametrize("report", ["succeeded", "failed", "abandoned"])
def test_calls_from_before_the_turn_decide_nothing(report: str) -> None:
    rig = Rig()
    early = rig.breaker.admit()

    def late() -> None:
        rig.breaker.failed(early, "late") if report == "failed" else getattr(rig.breaker, report)(early)

    rig.fail(3)
    late()
    assert rig.refused()  # an old success closes nothing
    rig.now += 5
    probe = rig.breaker.admit()
    late()
    assert (rig.breaker.state, rig.refused()) == ("half_open", True)  # an old failure or cancellation frees no place
    rig.breaker.succeeded(probe)
    late()
    assert (rig.breaker.state, rig.turns) == ("closed", ["open", "half_open", "closed"])


def test_a_long_outage() -> None:
    rig = Rig(failures=1)
    rig.fail()
    for _ in range(2_000):
        rig.now += MAX_COOLDOWN_S
        rig.fail()
    rig.now += MAX_COOLDOWN_S
    rig.breaker.succeeded(rig.breaker.admit())
    assert rig.breaker.state == "closed"


@given(seed=st.integers(0, 2**32), failures=st.integers(1, 4))
def test_whatever_happens_there_is_one_probe_at_most_and_a_way_back(seed: int, failures: int) -> None:
    rng, rig = random.Random(seed), Rig(failures, 1.0)
    out: list[int] = []
    probe: int | None = None
    for _ in range(300):
        rig.now += rng.choice([0, 0, 0.3, 2.0])
        if rng.random() < 0.5:
            before = rig.breaker.state
            try:
                ticket = rig.breaker.admit()
            except SearchFailure:
                assert rig.breaker.state == before != "closed"
                continue
            if rig.breaker.state == "half_open":
                assert probe is None
                probe = ticket
            else:
                out.append(ticket)
        elif out or probe is not None:
            mine = probe is not None and (not out or rng.random() < 0.3)
            ticket = probe if mine and probe is not None else out.pop(rng.randrange(len(out)))
            probe = None if mine else probe
            how = rng.choice(["succeeded", "failed", "abandoned"])
            rig.breaker.failed(ticket, "x") if how == "failed" else getattr(rig.breaker, how)(ticket)
    if probe is not None:
        rig.breaker.abandoned(probe)
    rig.now += MAX_COOLDOWN_S
    rig.breaker.succeeded(rig.breaker.admit())
    assert rig.breaker.state == "closed"
