"""Refill in the real loop: engine, search server, trainer, checkpoints; killed as a power cut would, and resumed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from loop_fixtures import ONE_RANK, ROOT, kill_everything, metrics, mmsr1, settings, small_world

from megatron_mmsr1.rollout.dump import read_dump

STEPS = 4
MORE = (
    *ONE_RANK,
    f"train.steps={STEPS}",
    "train.save_interval=1",
    "data.heldout=[]",
    "algorithm.correction=tis",
    "data.group_size=2",  # so that many groups have no variance
    "shaping.refill.rounds=3",
    "shaping.overlong.filter=true",
    "shaping.replay={threshold: 0.5, max_age: 20}",
)
SHAPING = ("rounds", "prompts", "live_share", "carried_in", "carried_out", "short", "staleness", "filtered")


@pytest.mark.slow
def test_a_run_with_refill_that_is_killed_repeats_itself(tmp_path: Path) -> None:
    world = small_world(tmp_path / "world")
    whole, out = tmp_path / "whole", tmp_path / "run"
    done = mmsr1("train", "configs/atlas.yaml", *settings(world, whole, *MORE))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = metrics(whole)
    assert [r["step"] for r in rows] == list(range(STEPS))
    assert any(r["shaping/rounds"] > 1 for r in rows), "the case refills"
    assert rows[0]["shaping/carried_out"], "the case resumes from a checkpoint that carries groups"
    assert list((whole / "checkpoints").glob("step_*/carried*")) and list((whole / "checkpoints").glob("step_*/successes*"))

    command = [sys.executable, "-m", "megatron_mmsr1.cli", "train", "configs/atlas.yaml", *settings(world, out, *MORE)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / "checkpoints" / "latest").exists() and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None and len(metrics(out)) < STEPS, "the run ended before it could be killed"
    kill_everything(process)
    done = mmsr1("train", "configs/atlas.yaml", *settings(world, out, *MORE))
    assert done.returncode == 0, done.stderr[-3000:]
    again = metrics(out)
    for a, b in zip(rows, again, strict=True):
        names = ("loss", "tokens", "reward/mean", *(f"shaping/{n}" for n in SHAPING))
        assert {k: a[k] for k in names} == pytest.approx({k: b[k] for k in names}, rel=1e-5, abs=1e-7), a["step"]
    for step in range(STEPS):
        first, second = (read_dump(run / "rollouts", step)[0] for run in (whole, out))
        assert [(t.group_id, t.token_ids) for t in first] == [(t.group_id, t.token_ids) for t in second]
