"""What befalls search in the middle of a GRPO run: its backend dies and comes back, its budget is used up."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatron_mmsr1.config import load
from megatron_mmsr1.procs.service import Service
from megatron_mmsr1.reward import score_trajectory
from megatron_mmsr1.rollout.dump import read_dump
from megatron_mmsr1.trajectory import ToolStatus, Trajectory
from tests.conftest import launch_engine
from tests.loop_fixtures import COLD_START, ONE_RANK, ROOT, metrics, settings, small_world
from tests.upstream import Upstream

STEPS = 6
DIES_AFTER = 2  # steps


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """For all runs, one after another: each begins by giving it the weights that it starts from."""
    with launch_engine(COLD_START, tmp_path_factory.mktemp("engine") / "engine.log") as server:
        yield server


@pytest.fixture
def upstream(world: Path, tmp_path: Path) -> Iterator[Upstream]:
    with Upstream(world, tmp_path / "upstream.log") as u:
        yield u


def argv(world: Path, out: Path, upstream: Upstream, engine: Service) -> list[str]:
    more = [*ONE_RANK, f"engine.urls=[{engine.url}]", f"train.steps={STEPS}"]
    more += ["search.text.backend=retrieve", f"search.text.url={upstream.url}"]
    more += ["data.heldout=[]", "train.save_interval=100", "data.prompts_per_step=12"]
    return [sys.executable, "-m", "megatron_mmsr1.cli", "train", "configs/atlas.yaml", *settings(world, out, *more)]


def wait_until(process: subprocess.Popen[bytes], out: Path, seen: Callable[[], bool]) -> None:
    while not seen():
        assert process.poll() is None, (out / "log").read_text()
        time.sleep(0.1)


def log_says(out: Path, words: str) -> bool:
    log = out / "run.log"
    return log.exists() and words in log.read_text()


def whole(out: Path) -> list[list[Trajectory]]:
    return [read_dump(out / "rollouts", s)[0] for s in range(STEPS)]


@pytest.mark.slow
def test_the_backend_dies_and_comes_back(world: Path, upstream: Upstream, engine: Service, tmp_path: Path) -> None:
    calm, struck = tmp_path / "calm", tmp_path / "struck"
    calm.mkdir()
    struck.mkdir()
    with (calm / "log").open("wb") as log:
        assert subprocess.run(argv(world, calm, upstream, engine), stdout=log, stderr=log, cwd=ROOT).returncode == 0
    with (
        (struck / "log").open("wb") as log,
        subprocess.Popen(argv(world, struck, upstream, engine), stdout=log, stderr=log, cwd=ROOT) as run,
    ):
        try:
            wait_until(run, struck, lambda: len(metrics(struck)) >= DIES_AFTER)
            upstream.kill()
            wait_until(run, struck, lambda: log_says(struck, "rollout paused"))
            upstream.start()
            assert run.wait() == 0, (struck / "log").read_text()
        finally:
            run.kill()

    rows = metrics(struck)
    assert [r["step"] for r in rows] == list(range(STEPS))
    # The rollout waited for it: the outage is time lost and little else, and the person was told.
    assert sum(r["search/paused_s"] for r in rows) > 0 and log_says(struck, "rollout goes on")
    last = rows[-1]
    assert last["search_server/retrieve/breaker_open"] >= 1 and last["search_server/retrieve/breaker_closed"] >= 1
    assert last["search_server/retrieve/upstream_error"] >= 1
    assert last["infrastructure/calls"] == 0

    cfg = load(struck / "config.yaml")
    failed = 0
    for t in (t for step in whole(struck) for t in step):
        stored = t.reward
        score_trajectory(t, cfg.reward)
        assert t.reward == stored and (stored is None) == t.infrastructure_failure
        failed += stored is None
    assert failed == sum(r["infrastructure/trajectories"] for r in rows)
    # Up to the first step that lost a trajectory the two runs are one: what was not struck is the same, reward and all.
    for before, after in zip(whole(calm), whole(struck), strict=True):
        for a, b in zip(before, after, strict=True):
            if not b.infrastructure_failure:
                assert (a.token_ids, a.reward) == (b.token_ids, b.reward)
        if any(b.infrastructure_failure for b in after):
            break


@pytest.mark.slow
def test_a_reached_cap_ends_the_run_and_a_higher_one_resumes_it(
    world: Path, upstream: Upstream, engine: Service, tmp_path: Path
) -> None:
    out, cap = tmp_path / "capped", 15

    def train(calls: int) -> tuple[int, str]:
        with (tmp_path / "log").open("w+b") as log:
            code = subprocess.run(
                [*argv(world, out, upstream, engine), f"search.budget.run_calls={calls}"], stdout=log, stderr=log, cwd=ROOT
            )
            log.seek(0)
            return code.returncode, log.read().decode()

    code, said = train(cap)
    assert code == 1 and f"search.budget.run_calls={cap} is reached" in said and "resumes" in said
    assert upstream.asked() == cap  # nothing beyond
    rows = metrics(out)
    assert len(rows) < STEPS and rows[-1]["tool/budget"] > 0
    # What met the cap was not trained on, and the run stopped with its work kept.
    last = read_dump(out / "rollouts", len(rows) - 1)[0]
    refused = [t for t in last if any(c.status is ToolStatus.BUDGET for c in t.tool_calls)]
    assert refused and all(t.reward is None for t in refused)
    assert (out / "checkpoints" / f"step_{len(rows):06d}").is_dir()

    code, said = train(10_000)
    assert code == 0, said
    assert [r["step"] for r in metrics(out)] == list(range(STEPS))
