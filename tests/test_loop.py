"""The whole loop, real in every part: it learns from rollouts, survives a SIGKILL of everything, replays, and exports."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from loop_fixtures import COLD_START, ROOT, kill_everything, metrics, mmsr1, settings, small_world

from megatron_mmsr1.rollout.dump import read_dump

SAME = ("loss", "reward/mean", "tokens", "search/share")  # of a step; grad_norm is compared to rounding


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    home = tmp_path_factory.mktemp("whole")
    (home / "tmp").mkdir()
    done = mmsr1("train", "configs/atlas.yaml", *settings(world, home / "run"), env={"TMPDIR": str(home / "tmp")})
    assert done.returncode == 0, done.stderr[-3000:]
    return home / "run"


def test_a_run_leaves_no_temporary_files(whole: Path) -> None:
    """Neither its ranks nor the engine nor the search server. torch makes a directory for each user where it is imported."""
    left = [f for f in (whole.parent / "tmp").iterdir() if not (f.name.startswith("torchinductor_") and not any(f.iterdir()))]
    assert left == []


def test_a_run_leaves_its_files_and_metrics(whole: Path) -> None:
    rows = metrics(whole)
    assert [r["step"] for r in rows] == list(range(5))
    assert all(r["logprob_diff_mean"] <= 1e-3 for r in rows if r["tokens"])
    assert sum(r["tokens"] > 0 for r in rows) >= 3, "steps without a live group teach nothing"
    assert all(r["infrastructure/trajectories"] == 0 for r in rows)
    assert all(r[f"seconds/{part}"] > 0 for r in rows for part in ("rollout", "train", "sync"))
    for name in ("eval/before.json", "eval/after.json", "model/config.json", "model/model.safetensors", "config.yaml"):
        assert (whole / name).is_file(), name
    assert list((whole / "tensorboard").iterdir())


def test_the_exported_model_differs_from_the_cold_start_and_loads(whole: Path) -> None:
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration as Model

    before = Model.from_pretrained(COLD_START, dtype=torch.float32).state_dict()
    after = Model.from_pretrained(whole / "model", dtype=torch.float32).state_dict()
    assert before.keys() == after.keys()
    changed = [k for k in before if not torch.equal(before[k], after[k])]
    assert changed and all("visual" not in k for k in changed), "the frozen tower must come back as it was"


def test_masks_cover_sampled_tokens_only(whole: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(COLD_START)
    pad, end = tokenizer.convert_tokens_to_ids("<|image_pad|>"), tokenizer.convert_tokens_to_ids("<|im_end|>")
    trajectories, _ = read_dump(whole / "rollouts", 0)
    assert len(trajectories) == 24
    for t in trajectories:
        t.check(pad)
        for turn in t.turns:
            ids = t.token_ids[turn.start : turn.end]
            if turn.role == "assistant" and t.status == "answered":
                assert ids[-1] == end and pad not in ids
            if turn.role == "tool":
                assert not any(t.loss_mask[turn.start : turn.end])


def test_resume_after_sigkill_repeats_the_run(world: Path, whole: Path, tmp_path: Path) -> None:
    """Colocated too, which gives the trainer's memory away before each rollout: that and the kill change nothing."""
    out = tmp_path / "run"
    arguments = ["train", "configs/atlas.yaml", *settings(world, out, "placement.colocated=true")]
    command = [sys.executable, "-m", "megatron_mmsr1.cli", *arguments]
    kill_after = random.Random(time.time_ns()).randint(1, 4)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(metrics(out)) < kill_after and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be killed"
    kill_everything(process)
    done = mmsr1(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = metrics(whole), metrics(out)
    assert [r["step"] for r in two] == list(range(5)), f"killed after {kill_after} steps"
    for a, b in zip(one, two, strict=True):
        assert {k: a.get(k) for k in SAME} == pytest.approx({k: b.get(k) for k in SAME}, rel=1e-5, abs=1e-7), (
            f"step {a['step']}"
        )
    for step in range(5):
        first, second = (read_dump(run / "rollouts", step)[0] for run in (whole, out))
        assert [t.prompt_id for t in first] == [t.prompt_id for t in second]
        assert [t.token_ids for t in first] == [t.token_ids for t in second]


def test_a_dump_trains_without_engine_or_search(world: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "replay"
    replay = settings(world, out, "train.mode=train-only", f"train.replay={whole}/rollouts", "train.steps=1")
    done = mmsr1("train", "configs/atlas.yaml", *replay)
    assert done.returncode == 0, done.stderr[-3000:]
    assert metrics(out)[0]["loss"] == pytest.approx(metrics(whole)[0]["loss"], rel=1e-5, abs=1e-7)
    assert not (out / "logs" / "engine.log").exists()


@pytest.mark.slow
@pytest.mark.slow
def test_context_parallel_ranks_train_on_a_dump_as_tensor_parallel_ones_did(world: Path, whole: Path, tmp_path: Path) -> None:
    """The second step stands on the weights of the first, and the third is another layout's, from a checkpoint."""
    out = tmp_path / "replay"
    replay = settings(world, out, "train.mode=train-only", f"train.replay={whole}/rollouts")
    split = ["megatron.tensor_parallel=1", "megatron.context_parallel=2"]
    for more in ([*split, "train.steps=2"], ["train.steps=3"]):
        done = mmsr1("train", "configs/atlas.yaml", *replay, *more)
        assert done.returncode == 0, done.stderr[-3000:]
    for a, b in zip(metrics(out), metrics(whole)[:3], strict=True):
        names = ("loss", "grad_norm", "entropy", "tokens")
        assert {k: a[k] for k in names} == pytest.approx({k: b[k] for k in names}, rel=1e-4, abs=1e-6), f"step {a['step']}"


@pytest.mark.slow
def test_rollouts_without_a_trainer(world: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "rollouts"
    done = mmsr1("train", "configs/atlas.yaml", *settings(world, out, "train.mode=rollout-only", "train.steps=1"))
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = (read_dump(run / "rollouts", 0)[0] for run in (out, whole))
    assert [t.token_ids for t in ours] == [t.token_ids for t in theirs]


def test_a_directory_of_another_configuration_is_refused(world: Path, whole: Path) -> None:
    done = mmsr1("train", "configs/atlas.yaml", *settings(world, whole, "optimizer.lr=0.5"))
    assert done.returncode == 2
    assert "optimizer.lr" in done.stderr and str(whole) in done.stderr
