"""Rewards beside the rollout: what hangs, raises or dies costs a trajectory its reward and nothing else. Real processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from megatron_mmsr1 import reward
from megatron_mmsr1.config import ProtocolConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.eval.metrics import rollout_metrics
from megatron_mmsr1.rollout.scoring import Scoring
from megatron_mmsr1.trajectory import Status, Trajectory

# What the last turn says is what the reward does.
OWN = """
import asyncio, os, time
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.reward import Reward

class Settings(Section):
    name: str = "own"

class Own(Reward):
    Settings = Settings
    def parts(self, trajectory):
        said = trajectory.assistant_texts[-1]
        print("a reward may print")
        if said == "hang":
            time.sleep(600)
        if said == "raise":
            raise KeyError("gone")
        if said == "die":
            os._exit(7)
        if said == "none":
            return None
        return {"reward": float(len(said)), "tokens": len(trajectory)}

class Judge(Reward):
    Settings = Settings
    together = 0
    async def parts(self, trajectory):
        said = trajectory.assistant_texts[-1]
        if said == "hang":
            await asyncio.sleep(600)
        Judge.together += 1
        while Judge.together < 3:  # three calls meet, or none ever ends
            await asyncio.sleep(0.01)
        return {"reward": 1.0}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def said(text: str) -> Trajectory:
    t = Trajectory("p", "g", 0, "q", ["gold"], status=Status.ANSWERED)
    t.append("prompt", [1], "q")
    t.append("assistant", [2, 3], text, logprobs=[-0.1, -0.2])
    return t


def score(name: str, texts: list[str], *, deadline_s: float, workers: int = 1) -> list[Trajectory]:
    async def run() -> list[Trajectory]:
        scoring = Scoring(reward.get(name).settings, workers=workers, deadline_s=deadline_s)
        done = [said(t) for t in texts]
        try:
            await asyncio.gather(*(scoring.score(t) for t in done))
        finally:
            await scoring.close()
        return done

    return asyncio.run(run())


def test_a_reward_that_fails_is_no_reward_of_zero(file: Path) -> None:
    done = score(f"{file}:Own", ["four", "hang", "raise", "die", "twelve words"], deadline_s=15.0)
    assert [t.reward for t in done] == [4.0, None, None, None, 12.0]
    assert done[0].reward_parts == {"tokens": 3.0}
    hung, raised, died = (str(t.extra["reward_error"]) for t in done[1:4])
    assert "own.py: Own.parts took longer than 15 s" in hung
    assert "own.py: Own.parts raised KeyError: 'gone'" in raised and "own.py:17" in raised
    assert "own.py: Own.parts ended its process with exit code 7" in died
    assert rollout_metrics(done, ProtocolConfig())["infrastructure/rewards"] == 3


def test_async_rewards_are_in_flight_together_and_keep_the_deadline(file: Path) -> None:
    done = score(f"{file}:Judge", ["a", "hang", "b", "c"], deadline_s=15.0)
    assert [t.reward for t in done] == [1.0, None, 1.0, 1.0]
    assert "took longer than 15 s" in str(done[1].extra["reward_error"])


def test_values_that_break_the_contract_end_the_run(file: Path) -> None:
    with pytest.raises(UsageError, match=r'own\.py: Own\.parts gave None; it must give a dict with the key "reward"'):
        score(f"{file}:Own", ["none"], deadline_s=60.0)


# Our own grammar leaves a binomial to math-verify, and that computes 9^(9^9).
ENDLESS = "\\binom{9^{9^9}}{2}"
HOSTILE = [
    "9**9**9",
    "9^{9^9}",
    "{" * 50_000 + "}" * 50_000,
    "\\frac{1}{" * 10_000,
    "\\sqrt[" * 12_000,
    "$" * 100_000,
    "(" * 100_000,
]


def test_a_hostile_answer_costs_its_deadline_at_most_and_the_next_one_nothing() -> None:
    """Texts of 100 kB are wrong at once. What keeps math-verify busy ends with its process, as no reward; a new one goes on."""
    right = "<think>t</think><answer>x>1</answer>"
    texts = [right, *(f"<think>t</think><answer>{h}</answer>" for h in HOSTILE), f"<answer>{ENDLESS}</answer>", right]

    async def run() -> list[Trajectory]:
        scoring = Scoring(reward.get("math").settings, workers=1, deadline_s=20.0)
        done = [said(t) for t in texts]
        try:
            for t in done:
                t.golden_answers = ["1<x"]
                await scoring.score(t)
        finally:
            await scoring.close()
        return done

    done = asyncio.run(run())
    assert [t.reward for t in done[1:-2]] == [0.1] * len(HOSTILE)  # wrong, and well formed
    assert done[-2].reward is None and "took longer than 20 s; its process was ended" in done[-2].extra["reward_error"]
    assert (done[0].reward, done[-1].reward) == (1.0, 1.0)


def test_ours_need_no_process() -> None:
    async def run() -> Trajectory:
        t = said("<reason>r</reason><answer>gold</answer>")
        scoring = Scoring(reward.get("mmsearch").settings, workers=2, deadline_s=1.0)
        await scoring.score(t)
        await scoring.close()
        return t

    assert asyncio.run(run()).reward == 1.0


def test_an_outage_is_never_scored(file: Path) -> None:
    t = said("four")
    t.status = Status.ENGINE_ERROR
    asyncio.run(Scoring(reward.get(f"{file}:Own").settings, workers=1, deadline_s=1.0).score(t))
    assert t.reward is None and "reward_error" not in t.extra
