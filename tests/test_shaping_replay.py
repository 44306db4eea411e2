"""Replay of rare successes: which are kept, which groups they join, and that a kill changes nothing of it."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from shaping_fixtures import ROWS, Life, live

from megatron_mmsr1.config import parse
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.shaping.replay import rare, wants

REPLAY: dict[str, Any] = {"replay": {"threshold": 0.5, "max_age": 12}}
EPOCH = ROWS // 4  # steps


@given(st.lists(st.booleans(), max_size=9), st.floats(0, 1))
def test_rare_is_more_than_never_and_at_most_the_threshold(right: list[bool], threshold: float) -> None:
    assert rare(right, threshold) == (any(right) and sum(right) / len(right) <= threshold)


@given(st.lists(st.sampled_from([0.0, 0.1, 1.0]), max_size=5), st.sampled_from([0.0, 0.1, 1.0]))
def test_a_success_joins_where_it_is_the_only_difference(rewards: list[float], kept: float) -> None:
    assert wants(rewards, kept) == (len(set(rewards)) == 1 and max(rewards) < kept)


def seldom(row: int, step: int, sample: int) -> float:
    """In the first epoch sample 2 of 4 of the even rows is right, and later nothing is."""
    return float(row % 2 == 0 and step < EPOCH and sample == 2)


def joined(life: Life, step: int) -> list[tuple[str, int, float, int]]:
    """Members of the step's groups that were rolled out in another step."""
    return [x for x in life.steps[step] if x[3] != step]


def test_a_kept_success_joins_the_next_group_of_its_question_and_no_other(tmp_path: Path) -> None:
    life = live(tmp_path, seldom, REPLAY, steps=2 * EPOCH, group_size=4)
    first = {s: [g for g, *_ in dict.fromkeys((x[0],) for x in life.steps[s])] for s in life.steps}
    rolled_out_in = {g.split("/")[1]: s for s in range(EPOCH) for g in first[s]}
    for step in range(EPOCH):
        assert joined(life, step) == [] and life.metrics[step]["shaping/replayed"] == 0
    for step in range(EPOCH, 2 * EPOCH):
        wanted = {
            (g, 4, 1.0, rolled_out_in[row])  # one more member, with its own reward and the weights that sampled it
            for g in first[step]
            if int(row := g.split("/")[1]) % 2 == 0 and step - rolled_out_in[row] <= 12
        }
        assert set(joined(life, step)) == wanted
        assert life.metrics[step]["shaping/replayed"] == len(wanted)
        assert set(life.fresh[step]) == set(first[step]) and len(life.fresh[step]) == 16  # metrics are of the step's own
    assert sum(m["shaping/replayed"] for m in life.metrics.values()) > 10


def test_too_old_too_frequent_and_no_longer_rare_are_not_kept(tmp_path: Path) -> None:
    young = {"replay": {"threshold": 0.5, "max_age": 3}}
    life = live(tmp_path / "a", seldom, young, steps=2 * EPOCH, group_size=4)
    assert all(step - x[3] <= 3 for step in life.steps for x in joined(life, step))
    strict = {"replay": {"threshold": 0.2, "max_age": 50}}  # one of four is more
    life = live(tmp_path / "b", seldom, strict, steps=2 * EPOCH, group_size=4)
    assert not any(joined(life, s) for s in life.steps)

    def learnt(row: int, step: int, sample: int) -> float:
        """Seldom right, then always, then never again: what is always right needs no old success."""
        return float((step < EPOCH and sample == 1) or EPOCH <= step < 2 * EPOCH)

    life = live(tmp_path / "c", learnt, {"replay": {"threshold": 0.5, "max_age": 99}}, steps=3 * EPOCH, group_size=4)
    assert not any(joined(life, s) for s in life.steps)


def test_a_replayed_success_makes_a_group_live_for_refill(tmp_path: Path) -> None:
    shaping = {"replay": {"threshold": 0.5, "max_age": 99}, "refill": {"rounds": 2}}
    life = live(tmp_path, seldom, shaping, steps=2 * EPOCH, group_size=4)
    assert sum(m["shaping/replayed"] for m in life.metrics.values()) > 3
    for trained in life.steps.values():
        for group in {g for g, *_ in trained}:
            members = [x for x in trained if x[0] == group]
            assert len({r for _, _, r, _ in members}) > 1 and [s for _, s, _, _ in members] == [*range(len(members))]


@functools.cache
def undisturbed(leaders: int, refill: bool) -> Life:
    """A run of two epochs; how often it writes checkpoints must not matter to it."""
    shaping = REPLAY | ({"refill": {"rounds": 2}} if refill else {})
    with tempfile.TemporaryDirectory() as out:
        return live(Path(out), seldom, shaping, steps=2 * EPOCH, leaders=leaders, group_size=4)


@pytest.mark.long
@settings(max_examples=examples(15), deadline=None)
@given(st.sampled_from([1, 2]), st.integers(1, 40), st.integers(1, 4), st.booleans())
def test_a_killed_run_replays_what_an_undisturbed_one_does(leaders: int, dies_at: int, every: int, refill: bool) -> None:
    shaping = REPLAY | ({"refill": {"rounds": 2}} if refill else {})
    options: Any = {"steps": 2 * EPOCH, "leaders": leaders, "checkpoint_every": every, "group_size": 4}
    whole = undisturbed(leaders, refill)
    with tempfile.TemporaryDirectory() as b:
        first = live(Path(b), seldom, shaping, **options, dies_at=dies_at)
        second = live(Path(b), seldom, shaping, **options)
    assert {**first.steps, **second.steps} == whole.steps
    assert {**first.metrics, **second.metrics} == whole.metrics
    assert any(joined(whole, s) for s in whole.steps)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_leaders_replays_the_same(tmp_path: Path, before: int, after: int) -> None:
    options: Any = {"group_size": 4}
    whole = live(tmp_path / "whole", seldom, REPLAY, steps=2 * EPOCH, **options)
    live(tmp_path / "run", seldom, REPLAY, steps=EPOCH, leaders=before, **options)
    second = live(tmp_path / "run", seldom, REPLAY, steps=2 * EPOCH, leaders=after, **options)
    assert {s: sorted(x) for s, x in second.steps.items()} == {s: sorted(whole.steps[s]) for s in second.steps}


@pytest.mark.parametrize("half", [{"threshold": 0.2}, {"max_age": 3}])
def test_half_a_replay_is_refused(half: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"shaping\.replay needs both threshold and max_age"):
        parse({"model": {"path": "m"}, "shaping": {"replay": half}})
