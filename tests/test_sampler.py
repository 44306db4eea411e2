"""Resumable order: what a resumed run sees is what an uninterrupted one would have."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.data.sampler import ResumableSampler
from megatron_mmsr1.errors import UsageError


@given(st.integers(1, 30), st.integers(0, 99), st.booleans(), st.lists(st.integers(0, 40), max_size=6), st.integers(0, 5))
def test_resuming_anywhere_continues_exactly(n: int, seed: int, shuffle: bool, takes: list[int], stop: int) -> None:
    whole = ResumableSampler(n, seed=seed, shuffle=shuffle)
    expected = [whole.take(k) for k in takes]
    first = ResumableSampler(n, seed=seed, shuffle=shuffle)
    got = [first.take(k) for k in takes[:stop]]
    second = ResumableSampler(n, seed=seed, shuffle=shuffle)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert got + [second.take(k) for k in takes[stop:]] == expected


@given(st.integers(1, 30), st.integers(0, 99), st.booleans())
def test_each_epoch_is_every_row_once(n: int, seed: int, shuffle: bool) -> None:
    taken = ResumableSampler(n, seed=seed, shuffle=shuffle).take(3 * n)
    for epoch in range(3):
        assert sorted(taken[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_epochs_and_seeds_differ_and_no_shuffle_keeps_the_order() -> None:
    taken = ResumableSampler(100, seed=1, shuffle=True).take(200)
    assert taken[:100] != taken[100:]
    assert taken != ResumableSampler(100, seed=2, shuffle=True).take(200)
    assert ResumableSampler(3, seed=1, shuffle=False).take(7) == [0, 1, 2, 0, 1, 2, 0]


def test_the_order_is_pinned() -> None:
    # A checkpoint must resume on another machine and another Python: this literal may never change.
    assert ResumableSampler(8, seed=0, shuffle=True).take(8) == PINNED


PINNED = [0, 2, 1, 4, 6, 7, 3, 5]


@pytest.mark.parametrize("change", [{"n": 9}, {"seed": 1}, {"shuffle": False}])
def test_a_foreign_state_is_refused(change: dict) -> None:
    state = ResumableSampler(8, seed=0, shuffle=True).state_dict() | change
    with pytest.raises(UsageError, match=next(iter(change))):
        ResumableSampler(8, seed=0, shuffle=True).load_state_dict(state)


def test_no_rows() -> None:
    with pytest.raises(UsageError, match="no rows"):
        ResumableSampler(0, seed=0, shuffle=True)
