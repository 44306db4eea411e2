"""Dynamic sampling with refill: which groups a step trains on, what is carried, and that a kill changes nothing of it."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from shaping_fixtures import ROWS, Killed, Life, Threads, live, some_live

from megatron_mmsr1.config import parse
from megatron_mmsr1.config.affects import differing, fingerprint
from megatron_mmsr1.config.section import Affects
from megatron_mmsr1.data.sampler import ResumableSampler
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.rollout.dump import dump_files, read_meta
from megatron_mmsr1.run import rollouts as module
from megatron_mmsr1.run.kept import Kept
from megatron_mmsr1.shaping.refill import MOST, first_round, next_round, varied
from megatron_mmsr1.trajectory import ImageRef, Trajectory

REFILL = {"refill": {"rounds": 3}}
STEPS = 6


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as d:
        yield Path(d)


def groups(life: Life) -> list[str]:
    return [g for step in sorted(life.steps) for g in dict.fromkeys(g for g, *_ in life.steps[step])]


# ------------------------------------------------------------------------------------------------------- how much is drawn
@given(st.integers(1, 64), st.integers(0, 200), st.integers(0, 500), st.integers(0, 64), st.sampled_from([1, 2, 3, 8]))
def test_a_round_is_bounded_and_divides_and_none_follows_enough(
    wanted: int, have: int, drawn: int, live_: int, multiple: int
) -> None:
    n = next_round(wanted, have, drawn, min(live_, drawn), multiple)
    assert n % multiple == 0 and (n == 0) == (have >= wanted) and n < MOST * wanted + multiple
    first = first_round(wanted, have, multiple)
    assert first % multiple == 0 and wanted / 2 <= first < wanted + multiple


def test_a_round_asks_for_what_is_missing_over_the_live_share() -> None:
    assert next_round(8, 2, 8, 2, 1) == 24  # 6 missing, a quarter of the prompts is live
    assert next_round(8, 6, 8, 6, 1) == 3  # 2 / 0.75 = 2.67
    assert next_round(8, 6, 8, 6, 4) == 4
    assert next_round(8, 0, 8, 0, 1) == 32  # nothing is known but that it is rare
    assert (first_round(8, 0, 2), first_round(8, 3, 2), first_round(8, 7, 2), first_round(8, 99, 8)) == (8, 6, 4, 8)


@given(st.lists(st.floats(-1, 1), max_size=6))
def test_variance_is_two_different_rewards(rewards: list[float]) -> None:
    assert varied(rewards) == any(a != b for a in rewards for b in rewards)


# ------------------------------------------------------------------------------------------------------------- a whole run
def test_off_a_step_draws_and_trains_as_ever(home: Path) -> None:
    life = live(home, some_live(0.5), {}, steps=3)
    order = ResumableSampler(ROWS, seed=0, shuffle=True).take(12)
    assert groups(life) == [f"{i // 4}/{row}" for i, row in enumerate(order)]
    assert life.metrics == {0: {}, 1: {}, 2: {}} and not list((home / "checkpoints" / "000003").glob("carried*"))


@pytest.mark.long
@settings(max_examples=examples(25), deadline=None)
@given(st.floats(0.05, 1.0), st.integers(0, 5), st.sampled_from([1, 2, 4]), st.integers(1, 4))
def test_every_live_group_is_trained_on_once_or_still_kept_and_no_other_is(
    share: float, seed: int, leaders: int, rounds: int
) -> None:
    reward = some_live(share, seed)
    with tempfile.TemporaryDirectory() as d:
        life = live(Path(d), reward, {"refill": {"rounds": rounds}}, steps=STEPS, leaders=leaders)
    alive = {f"{s}/{row}" + (f"/{c}" if c else "") for s, row, c in life.asked if reward(row, s, 0) != reward(row, s, 1)}
    trained = groups(life)
    assert len(trained) == len(set(trained)) and not set(trained) & set(life.kept)
    assert set(trained) | set(life.kept) == alive
    asked = sorted(f"{s}/{row}" + (f"/{c}" if c else "") for s, row, c in life.asked)
    assert sorted({g for made in life.fresh.values() for g in made}) == asked  # metrics are of all that was made, once
    for step, m in life.metrics.items():
        n = len({g for g, *_ in life.steps[step]})
        assert n == 4 - m["shaping/short"] <= 4 and m["shaping/rounds"] <= rounds + 1
        assert m["shaping/short"] == 0 or m["shaping/rounds"] == rounds + 1
        assert m["shaping/carried_in"] == (life.metrics[step - 1]["shaping/carried_out"] if step else 0)
    assert len(life.warned) == any(m["shaping/short"] for m in life.metrics.values())


def test_carried_groups_come_first_whole_and_with_the_weights_that_sampled_them(home: Path) -> None:
    """Step 0: of 4 prompts one is live, so that 12 more are asked for, all of which are: 13, of which 9 are carried."""
    seen: list[int] = []

    def reward(row: int, step: int, sample: int) -> float:
        if step == 0 and row not in seen:
            seen.append(row)
        return float(sample) if step or seen.index(row) in (1, *range(4, 99)) else 0.0

    life = live(home, reward, REFILL, steps=3)
    m = [life.metrics[s] for s in range(3)]
    assert [x["shaping/prompts"] for x in m] == [16, 2, 2] and [x["shaping/carried_out"] for x in m] == [9, 7, 5]
    assert [x["shaping/staleness"] for x in m] == [0.0, 1.0, 2.0]
    assert [(s, step) for _, s, _, step in life.steps[1]] == [(0, 0), (1, 0)] * 4
    assert len(life.fresh[1]) == 2 * 2 and m[0]["shaping/live_share"] == 13 / 16


def test_the_shaped_rewards_decide_and_not_those_of_the_dump(home: Path) -> None:
    """Length alone: here all rewards are equal, and the overlong penalty alike for all, so nothing is live."""
    life = live(home, lambda *_: 1.0, {**REFILL, "overlong": {"buffer": 5}}, steps=1)
    assert life.steps[0] == [] and life.metrics[0]["shaping/short"] == 4
    assert life.metrics[0]["shaping/prompts"] == 4 + 3 * 16
    said = "step 0: 0 of 4 groups have variance after 4 rounds (shaping.refill.rounds=3): it trains on those. "
    assert life.warned == [said + "Said once; shaping/short counts"]


# ------------------------------------------------------------------------------------------------------------ kill, resume
@pytest.mark.long
@settings(max_examples=examples(25), deadline=None)
@given(st.floats(0.1, 0.9), st.sampled_from([1, 2]), st.integers(1, 12), st.integers(1, 3))
def test_a_killed_run_that_is_resumed_trains_on_what_an_undisturbed_one_does(
    share: float, leaders: int, dies_at: int, every: int
) -> None:
    """Wherever it dies, also between two rounds of a step, and whenever the last checkpoint was; nothing is rolled out twice
    that a dump holds."""
    options: Any = {"steps": STEPS, "leaders": leaders, "checkpoint_every": every}
    reward = some_live(share)
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        whole = live(Path(a), reward, REFILL, **options)
        first = live(Path(b), reward, REFILL, **options, dies_at=dies_at)
        second = live(Path(b), reward, REFILL, **options)
        for step, trained in {**first.steps, **second.steps}.items():
            assert trained == whole.steps[step], step
        assert {**first.fresh, **second.fresh} == whole.fresh and second.kept == whole.kept
        of_last = [g for n, g in enumerate(second.asked) if g in first.asked]
        assert len({s for s, *_ in of_last}) <= 1  # the round that was lost, of the step in which it died


def test_leaders_that_died_between_their_dumps_of_a_round(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has two rounds on disk, the other one: the step goes on after the first."""
    reward, written = some_live(0.3, 3), [0]
    whole = live(home / "whole", reward, REFILL, steps=3, leaders=2)
    assert whole.metrics[0]["shaping/rounds"] > 1
    real = module.write_dump

    def dies(*args: Any, part: int, parts: int) -> Path:
        written[0] += part
        if part == 1 and written[0] == 2:
            raise Killed
        return real(*args, part=part, parts=parts)

    monkeypatch.setattr(module, "write_dump", dies)
    live(home / "run", reward, REFILL, steps=3, leaders=2)
    monkeypatch.setattr(module, "write_dump", real)
    assert [len(read_meta(f)["rounds"]) for f in dump_files(home / "run" / "rollouts", 0)] in ([2, 1], [1, 1])
    again = live(home / "run", reward, REFILL, steps=3, leaders=2)
    assert again.steps == whole.steps and again.fresh == whole.fresh


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (4, 2)])
def test_a_run_resumed_by_another_number_of_leaders_loses_nothing_and_trains_on_nothing_twice(
    home: Path, before: int, after: int
) -> None:
    reward = some_live(0.6, 7)
    first = live(home, reward, REFILL, steps=3, leaders=before)
    assert first.kept, "the case has carried groups"
    second = live(home, reward, REFILL, steps=STEPS, leaders=after)
    trained, asked = groups(first) + groups(second), first.asked + second.asked
    assert len(trained) == len(set(trained))
    alive = {f"{s}/{row}" + (f"/{c}" if c else "") for s, row, c in asked if reward(row, s, 0) != reward(row, s, 1)}
    assert set(trained) | set(second.kept) == alive
    assert all(len([x for x in second.steps[3] if x[0] == g]) == 2 for g, *_ in second.steps[3])  # whole groups


def test_a_replay_of_the_dumps_trains_on_the_same_groups(home: Path) -> None:
    first = live(home / "run", some_live(0.4, 1), REFILL, steps=4)
    replay = live(home / "replay", some_live(0.4, 1), REFILL, steps=4, mode="train-only", replay=str(home / "run" / "rollouts"))
    assert replay.steps == first.steps and replay.asked == []


def test_no_further_round_where_nothing_has_a_reward(home: Path) -> None:
    """An outage: the step ends the run, and must not ask for four times as many first."""
    life = live(home, lambda *_: None, REFILL, steps=1)
    assert len(life.asked) == 4 and life.steps[0] == []


def test_no_further_round_once_a_budget_refuses_searches(home: Path) -> None:
    """More would only find questions that need no search, and teach from those."""
    for refused, rounds in ((True, 1), (False, 4)):
        life = live(home / str(refused), lambda *_: 0.0, REFILL, steps=1, refused=refused)
        assert life.metrics[0]["shaping/rounds"] == rounds and life.metrics[0]["shaping/short"] == 4


def test_pictures_of_carried_groups_that_are_gone_are_named(home: Path) -> None:
    cfg = parse({"model": {"path": "m"}, "shaping": REFILL})
    kept = Kept(cfg, Threads(0, 1, [None], threading.Barrier(1)), home / "images")
    t = Trajectory("p", "0/1", 0, "q", ["a"], images=[ImageRef("0" * 64, (1, 4, 4))], reward=1.0)
    kept.keep(["0/1"], [t])
    kept.write(home)
    with pytest.raises(RunError, match=r"1 pictures of the rollouts that it keeps are missing from .*images: copy them back"):
        kept.restore(home, kept.state())


def test_what_changes_the_rollouts_changes_their_fingerprint() -> None:
    old = parse({"model": {"path": "m"}})
    refill, overlong = (parse({"model": {"path": "m"}, "shaping": s}) for s in (REFILL, {"overlong": {"buffer": 5}}))
    assert fingerprint(refill) != fingerprint(old)
    assert differing(old, refill, (Affects.ROLLOUT,)) == ["shaping.refill.rounds"]
    assert differing(old, overlong, (Affects.ROLLOUT,)) == []


PAGE = Path(__file__).parent.parent / "docs" / "algorithms.md"


@pytest.mark.parametrize("text", re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))
def test_what_the_page_shows_is_a_config(text: str) -> None:
    cfg = parse({"model": {"path": "m"}} | yaml.safe_load(text))
    assert cfg.algorithm.parts() and cfg.shaping != parse({"model": {"path": "m"}}).shaping
