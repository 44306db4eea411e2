"""What is changed in a reward before the advantage: length, and the price of a search in a run's first steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from rollout_fixtures import ScriptedEngine, ScriptedSearch, context, prompt
from vendors.openai import said
from vendors.server import Vendor

from megatron_mmsr1 import config, reward
from megatron_mmsr1.eval.evaluate import EVAL_STEP
from megatron_mmsr1.reward.base import resolved
from megatron_mmsr1.reward.mmsearch import warmed
from megatron_mmsr1.rollout.batch import Batch
from megatron_mmsr1.rollout.dump import read_dump, write_dump
from megatron_mmsr1.rollout.jobs import Job
from megatron_mmsr1.rollout.scoring import Scoring
from megatron_mmsr1.shaping.overlong import filtered, length_penalty, metrics, shaped_reward
from megatron_mmsr1.trajectory import Status, Trajectory

SEARCHED = ["<reason>r</reason><search><img></search>", "<reason>r</reason><answer>x</answer>"]


def cfg(**sections: Any) -> config.RunConfig:
    return config.parse({"model": {"path": "m"}, **sections})


def sampled(n: int, status: Status = Status.ANSWERED, observed: int = 5) -> Trajectory:
    t = Trajectory("p", "0/0", 0, "q", ["x"], status=status, reward=1.0)
    t.append("prompt", [1] * 7, "q")
    t.append("assistant", [2] * (n // 2), "a", logprobs=[-1.0] * (n // 2))
    t.append("tool", [3] * observed, "seen")
    t.append("assistant", [2] * (n - n // 2), "a", logprobs=[-1.0] * (n - n // 2))
    return t


def test_the_penalty_of_equation_13() -> None:
    """DAPO's own setting: 16,384 tokens expected, a buffer of 4,096, so that the limit is 20,480; halfway is half of it."""
    found = [length_penalty(n, 20480, 4096, 1.0) for n in (0, 16384, 18432, 20480, 30000)]
    assert found == [0.0, 0.0, -0.5, -1.0, -1.0]


@given(st.integers(1, 500), st.integers(0, 500), st.floats(0, 3), st.integers(0, 600), st.integers(0, 600))
def test_the_penalty_is_bounded_falls_with_length_and_is_0_before_the_buffer(
    limit: int, buffer: int, most: float, a: int, b: int
) -> None:
    short, long = (length_penalty(n, limit, buffer, most) for n in sorted((a, b)))
    assert -most <= long <= short <= 0
    if buffer == 0 or min(a, b) <= limit - buffer:
        assert short == 0


def test_the_limit_is_what_a_conversation_can_sample_and_observations_do_not_count() -> None:
    on = cfg(
        protocol={"max_rounds": 2, "max_turn_tokens": 20, "max_response_tokens": 30},
        shaping={"overlong": {"buffer": 10, "penalty": 0.5}},
    )
    assert on.protocol.sampled_limit == 30 and cfg(protocol={"max_turn_tokens": 10}).protocol.sampled_limit == 30
    for observed in (0, 200):
        assert [shaped_reward(sampled(n, observed=observed), on) for n in (20, 25, 30)] == [1.0, 0.75, 0.5]
        assert shaped_reward(sampled(25, observed=observed).outline(), on) == 0.75
    t = sampled(30)
    assert metrics([t, sampled(20)], on) == {"shaping/overlong": -0.25} and t.reward == 1.0
    with pytest.raises(Exception, match=r"shaping.overlong.buffer=31 is more than a conversation can sample, which is 30"):
        cfg(protocol={"max_turn_tokens": 10}, shaping={"overlong": {"buffer": 31}})


def test_off_changes_nothing_and_says_nothing() -> None:
    t = sampled(9000, Status.OUT_OF_TOKENS)
    t.reward = 0.1
    assert shaped_reward(t, cfg()) == 0.1 and not filtered(t, cfg()) and metrics([t], cfg()) == {}


def test_the_filter_is_about_those_that_ran_out_of_tokens() -> None:
    on = cfg(shaping={"overlong": {"filter": True}})
    cut, whole = sampled(9000, Status.OUT_OF_TOKENS), sampled(9000)
    assert filtered(cut.outline(), on) and not filtered(whole, on)
    assert metrics([cut, whole, whole, whole], on) == {"shaping/filtered": 0.25}


# ------------------------------------------------------------------------------------------------------ a search's price
@given(st.integers(0, 50), st.integers(0, 50))
def test_the_price_grows_from_0_to_its_value(step: int, warmup: int) -> None:
    assert warmed(None, warmup) == 1.0 and warmed(warmup, warmup) == 1.0
    assert 0.0 <= warmed(step, warmup) <= warmed(step + 1, warmup) <= 1.0
    if warmup:
        assert warmed(0, warmup) == 0.0


def searched(step: int | None) -> Trajectory:
    t = Trajectory("p", "0/0", 0, "q", ["x"], status=Status.ANSWERED, step=step)
    t.append("prompt", [0], "")
    for text in SEARCHED:
        t.append("assistant", [0], text, logprobs=[0.0])
    return t


def test_both_rewards_that_price_a_search_warm_it_up() -> None:
    """0.9 * (1 - 0.2 * step / 4) + 0.1 for a right, well-formed answer with a search."""
    with Vendor(lambda _: said("VERDICT: correct")) as v:
        for name, more in (("mmsearch", {}), ("judge", {"url": v.url, "model": "m"})):
            r = reward.get(name, search_penalty=0.2, penalty_warmup=4, **more)
            found = [resolved(r.parts(searched(step)))["reward"] for step in (0, 2, 4, 9, None)]
            assert found == pytest.approx([1.0, 0.91, 0.82, 0.82, 0.82]), name
            at_once = reward.get(name, search_penalty=0.2, **more)
            assert resolved(at_once.parts(searched(0)))["reward"] == pytest.approx(0.82)


class Talk(ScriptedEngine):
    """An engine for every trajectory of a batch: each says the same."""

    def __init__(self) -> None:
        super().__init__(tiny_checkpoint.tokenizer(), [f"{t}<|im_end|>" for t in SEARCHED])

    def expect(self, version: int | None) -> None: ...

    def conversation(self, group: str) -> ScriptedEngine:
        return Talk()


@pytest.mark.parametrize(("step", "known", "worth"), [(0, 0, 1.0), (5, 5, 0.95), (EVAL_STEP, None, 0.91)])
async def test_a_trajectory_knows_its_step_before_it_is_scored_and_a_dump_keeps_it(
    step: int, known: int | None, worth: float, tmp_path: Path
) -> None:
    c = cfg(reward={"penalty_warmup": 9})
    job = Job([prompt()], step, [3], None, 2, None)
    scoring = Scoring(c.reward, workers=1, deadline_s=9)
    made = await Batch(context(ScriptedSearch(), tokenizer=tiny_checkpoint.tokenizer()), Talk(), c, job, print, scoring).run()  # type: ignore[arg-type]
    assert [(t.step, t.reward) for t in made] == [(known, pytest.approx(worth))] * 2
    write_dump(tmp_path, 0, made, {})
    assert [t.step for t in read_dump(tmp_path, 0)[0]] == [known] * 2
    older = json.loads(json.dumps(made[0].to_dict()))
    del older["step"]
    assert Trajectory.from_dict(older).step is None
