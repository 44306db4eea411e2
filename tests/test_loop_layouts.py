"""The loop beyond two tensor-parallel ranks: two leaders, two pipeline stages, an engine of somebody else's, several updates a
step, a KL term, evaluations on the way, an epoch's border inside a step, Ctrl-C, and a run that is extended."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import launch_engine
from loop_fixtures import COLD_START, ROOT, metrics, mmsr1, settings

from megatron_mmsr1.eval.results import EvalResult
from megatron_mmsr1.rollout.dump import read_dump

pytestmark = pytest.mark.slow  # minutes of real loops: ./scripts/test.sh --slow

SAME = ("loss", "reward/mean", "tokens", "kl")


@pytest.fixture(scope="module")
def engine_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One engine for every run here: each puts its own weights into it first."""
    with launch_engine(COLD_START, tmp_path_factory.mktemp("engine") / "engine.log") as server:
        yield server.url


def arguments(world: Path, out: Path, engine: str, search: str, *more: str) -> list[str]:
    few = out.parent / "few.parquet"  # 5 rows for 6 prompts a step: every step holds a row twice
    pq.write_table(pq.read_table(world / "train.parquet").slice(0, 5), few)
    settled = [f"data.train=[{few}]", f"engine.urls=[{engine}]", f"search.url={search}", "train.eval_limit=6"]
    settled += ["train.steps=2", "train.eval_interval=1", "train.save_interval=1", "data.group_size=3"]
    settled += ["algorithm.updates_per_step=2", "algorithm.kl_coef=0.05", "megatron.tensor_parallel=1"]
    return ["train", "configs/atlas.yaml", *settings(world, out, *settled, *more)]


@pytest.fixture(scope="module")
def two_leaders(atlas_world: Path, atlas_search: str, engine_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dp2") / "run"
    done = mmsr1(*arguments(atlas_world, out, engine_url, atlas_search))
    assert done.returncode == 0, done.stderr[-3000:]
    assert str(out / "model") in done.stderr and "mmsr1 report" in done.stderr
    return out


def check_run(out: Path, steps: int = 2) -> None:
    rows = metrics(out)
    assert [r["step"] for r in rows] == list(range(steps))
    assert all(r["logprob_diff_mean"] <= 1e-3 and r["infrastructure/trajectories"] == 0 for r in rows)
    assert rows[0]["kl"] >= 0 and any(r["kl"] > 0 for r in rows)
    for name, step in (("before", 0), ("step_000001", 1), ("after", steps)):
        result = EvalResult.load(out / "eval" / f"{name}.json")
        assert result.meta["weights"] == step and result.overall.n == 6
    ids = [EvalResult.load(out / "eval" / f"{n}.json").meta["key"]["weights"] for n in ("before", "step_000001", "after")]
    assert len(set(ids)) == 3


def test_two_leaders(two_leaders: Path) -> None:
    check_run(two_leaders)
    for step in range(2):
        trajectories, _ = read_dump(two_leaders / "rollouts", step)
        groups: dict[str, list[str]] = {}
        for t in trajectories:
            groups.setdefault(t.group_id, []).append(t.prompt_id)
        # Six groups of three, though only five rows: a row that comes twice is two groups, also on two leaders.
        assert [len(members) for members in groups.values()] == [3] * 6
        assert len({members[0] for members in groups.values()}) <= 5


def test_two_stages_stopped_by_ctrl_c_and_resumed_do_the_same(
    atlas_world: Path, atlas_search: str, engine_url: str, two_leaders: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    # Longer than it need be: Ctrl-C may come late, and must come before its last step.
    argv = arguments(atlas_world, out, engine_url, atlas_search, "megatron.pipeline_parallel=2", "train.steps=5")
    command = [sys.executable, "-m", "megatron_mmsr1.cli", *argv]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as run:
        while not (out / "rollouts" / "eval_before.jsonl.zst").exists() and run.poll() is None:
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        said = run.communicate()[1]
    assert run.returncode == 130, said[-3000:]
    stopped = re.search(r"stopped after step (\d)", said)
    assert "stopping after this step, with a checkpoint" in said and stopped, said[-3000:]
    assert (out / "checkpoints" / "latest").read_text() == f"step_00000{stopped[1]}"
    done = mmsr1(*argv)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"resuming at step {stopped[1]}" in done.stderr
    check_run(out, steps=5)
    one, two = metrics(two_leaders)[0], metrics(out)[0]
    assert {k: one[k] for k in SAME} == pytest.approx({k: two[k] for k in SAME}, rel=1e-4, abs=1e-6)
    ids = [[t.token_ids.tolist() for t in read_dump(run / "rollouts", 0)[0]] for run in (two_leaders, out)]
    assert ids[0] == ids[1]


def test_a_finished_run_starts_nothing_and_an_extended_one_exports_its_newest_weights(
    atlas_world: Path, atlas_search: str, two_leaders: Path, tmp_path: Path
) -> None:
    nobody = "http://127.0.0.1:9"
    done = mmsr1(*arguments(atlas_world, two_leaders, nobody, nobody))
    assert done.returncode == 0 and "nothing is left to do: 2 of 2 steps" in done.stderr, done.stderr
    # Extended, and interrupted before its first new step: nobody answers at its engine's address.
    done = mmsr1(*arguments(atlas_world, two_leaders, nobody, atlas_search, "train.steps=3"))
    assert done.returncode == 1, done.stderr
    assert not (two_leaders / "eval" / "after.json").exists()
    assert EvalResult.load(two_leaders / "eval" / "step_000002.json").meta["weights"] == 2


def test_a_checkpoint_is_exported_without_engine_search_or_logs(two_leaders: Path, tmp_path: Path) -> None:
    """Of a run that has not finished, and of one checkpoint of it; the run's own files stay as they are."""
    import torch
    from safetensors.torch import load_file

    before = (two_leaders / "metrics.jsonl").read_bytes()
    checkpoint = two_leaders / "checkpoints" / "step_000002"
    done = mmsr1("export", str(checkpoint), str(tmp_path / "one"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (two_leaders / "metrics.jsonl").read_bytes() == before
    ours, trained = (load_file(d / "model.safetensors") for d in (tmp_path / "one", two_leaders / "model"))
    assert ours.keys() == trained.keys() and all(torch.equal(ours[k], trained[k]) for k in ours)
    assert "after step 2" in done.stderr and "2 of" in (tmp_path / "one" / "README.md").read_text()
