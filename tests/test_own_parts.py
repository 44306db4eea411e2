"""A person's own reward and policy loss, in files outside the package, named in the config: the real loop runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from doc_examples import write_examples
from loop_fixtures import metrics, mmsr1, settings, small_world

from megatron_mmsr1.rollout.dump import read_dump

pytestmark = pytest.mark.slow  # minutes of real loops: ./scripts/test.sh --slow

SHORT = ("data.prompts_per_step=4", "data.group_size=4", "train.steps=2", "data.heldout=[]")


def test_own_reward_and_loss_run_in_the_loop(tmp_path: Path) -> None:
    files = write_examples("reward.md", tmp_path) | write_examples("algorithm.md", tmp_path)
    world = small_world(tmp_path / "world")
    terms = f"[{{weight: 1.0, reward: mmsearch}}, {{weight: 0.5, reward: {{name: '{files['brief.py']}:Brief', words: 8}}}}]"
    own = (
        f"reward={{name: weighted, terms: {terms}}}",
        f"algorithm.policy_loss={{name: '{files['squared.py']}:Squared', width: 0.5}}",
        "algorithm.correction=truncated",
        "algorithm.average=sequence",
        "algorithm.updates_per_step=2",
    )
    out = tmp_path / "run"
    done = mmsr1("train", "configs/atlas.yaml", *settings(world, out, *SHORT, *own))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = metrics(out)
    assert [r["step"] for r in rows] == [0, 1]
    assert all(r["infrastructure/rewards"] == 0 for r in rows)
    trained = [r for r in rows if r.get("loss_tokens")]
    assert trained and all(0 < r["correction_mean"] <= 2 and r["grad_norm"] > 0 for r in trained)
    for t in read_dump(out / "rollouts", 0)[0]:
        # The sum of both, each scored by its own file.
        assert t.reward == t.reward_parts["term/1/reward"] + 0.5 * t.reward_parts["term/2/reward"]
        assert t.reward_parts["words"] == len(t.assistant_texts[-1].split())


def test_broken_ones_are_refused_before_anything_starts(tmp_path: Path) -> None:
    world, out = small_world(tmp_path / "world"), tmp_path / "run"
    broken = tmp_path / "broken.py"
    broken.write_text("class Mine: ...\n")
    for key, rule in (("reward", "must be a subclass"), ("algorithm.policy_loss", "has no method losses")):
        done = mmsr1("train", "configs/atlas.yaml", *settings(world, out, *SHORT, f"{key}={broken}:Mine"))
        assert done.returncode == 2
        assert str(broken) in done.stderr and rule in done.stderr and "Traceback" not in done.stderr
    assert not (out / "logs").exists()
