"""The worker's process against a real engine: whole batches, repeated, interrupted, and dumped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import tiny_checkpoint
from conftest import launch_engine
from rollout_fixtures import prompt

from megatron_mmsr1.config import RunConfig, SearchConfig, parse
from megatron_mmsr1.data.images import ImageStore
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.rollout.dump import dump_path, read_dump, write_dump
from megatron_mmsr1.rollout.worker import RolloutWorker
from megatron_mmsr1.trajectory import Status, ToolStatus

ROOT = Path(__file__).parents[1]
PROMPTS = [prompt(n, pictures=n % 3) for n in range(6)]
INDICES = [40 + n for n in range(6)]


def settings(checkpoint: Path, **rollout: object) -> RunConfig:
    return parse(
        {
            "model": {"path": str(checkpoint), "min_pixels": 56 * 56, "max_pixels": 28 * 28 * 64},
            "protocol": {"prompts": "atlas", "max_rounds": 4, "text_searches": 3, "max_turn_tokens": 24},
            "rollout": {"retries": 0, **rollout},
        }
    )


@pytest.fixture(scope="module")
def worker(engine, checkpoints, tmp_path_factory):
    """Without a search server: every search is refused, which the chain answers by going on."""
    images = tmp_path_factory.mktemp("images")
    with RolloutWorker(settings(checkpoints["chain"]), [engine.url], None, images) as w:
        yield w, images


def roll(worker, version: int | None, **changes):
    options = {"step": 3, "indices": INDICES, "weight_version": version, "group_size": 4}
    return worker.generate(PROMPTS, **{**options, **changes})


def test_a_batch_is_whole_ordered_scored_and_repeats(worker, weights):
    worker, images = worker
    version = weights("chain")
    seen = []
    done = roll(worker, version, progress=seen.append)
    assert [(t.prompt_id, t.sample_index) for t in done] == [(p.prompt_id, s) for p in PROMPTS for s in range(4)]
    assert len({t.group_id for t in done}) == 6
    pad = tiny_checkpoint.tokenizer().convert_tokens_to_ids("<|image_pad|>")
    store = ImageStore(images)
    for t in done:
        t.check(pad)
        assert t.reward is not None and t.reward_parts and t.extra["kind"] == "known"
        assert set(t.weight_versions) == {-1, version}
        assert all(store.get(i.sha256) for i in t.images)
    assert {t.status for t in done} >= {Status.ANSWERED} and any(len(t.turns) >= 5 for t in done)
    assert seen[-1].done == seen[-1].total == 24 and "24/24" in seen[-1].line()

    again = roll(worker, weights("chain"))
    assert [t.token_ids for t in again] == [t.token_ids for t in done]
    assert [t.reward for t in again] == [t.reward for t in done]
    other = roll(worker, None, step=4)
    assert [t.token_ids for t in other] != [t.token_ids for t in done]


def test_with_a_real_search_server(engine, weights, checkpoints, tmp_path):
    """Hits with pictures from another process: canonical, stored, counted alike by engine and trainer."""
    from search_fixtures import write_corpus, write_images

    from megatron_mmsr1.search.server.launch import launch

    corpus = write_corpus(tmp_path / "corpus")
    write_images(corpus, 4)
    version = weights("chain")
    cfg = settings(checkpoints["chain"])
    with (
        launch(SearchConfig(corpus=str(corpus)), cache_path=tmp_path / "cache.sqlite", log=tmp_path / "search.log") as server,
        RolloutWorker(cfg, [engine.url], server.url, tmp_path / "images") as w,
    ):
        done = w.generate(PROMPTS[1:3], step=0, indices=[1, 2], weight_version=version, group_size=8)
    pad = tiny_checkpoint.tokenizer().convert_tokens_to_ids("<|image_pad|>")
    for t in done:
        t.check(pad)
    calls = [c for t in done for c in t.tool_calls]
    assert {c.kind for c in calls if c.status is ToolStatus.OK} >= {"image"}
    assert all(c.results for c in calls if c.status is ToolStatus.OK)
    assert any(len(t.images) > 2 for t in done)


def test_a_prompt_twice_in_a_batch_is_two_groups(worker, weights):
    worker, _ = worker
    weights("random")
    done = worker.generate([PROMPTS[0]] * 2, step=0, indices=[7, 7], weight_version=None, group_size=2)
    assert len({t.group_id for t in done}) == 2 and len({tuple(t.token_ids) for t in done}) == 4


def test_other_weights_than_asked_for_stop_the_run(worker, weights):
    worker, _ = worker
    version = weights("chain")
    with pytest.raises(RunError, match=f"version \\[{version}\\], not {version + 1}"):
        roll(worker, version + 1)
    assert len(roll(worker, version)) == 24  # and the worker lives on


def test_a_picture_that_is_none_is_the_datas_error(worker, weights):
    worker, _ = worker
    broken = prompt(9)
    broken.images = [b"no picture"]
    with pytest.raises(UsageError, match=r"p9 \(row 77\)"):
        worker.generate([broken], step=0, indices=[77], weight_version=None, group_size=2)


def test_dumps_read_back_equal(worker, weights, tmp_path):
    worker, _ = worker
    done = roll(worker, weights("chain"))
    assert write_dump(tmp_path, 3, done, {"weights": 5}) == dump_path(tmp_path, 3)
    assert read_dump(tmp_path, 3) == (done, {"weights": 5})
    write_dump(tmp_path, "eval_before", done[:2], {})
    assert read_dump(tmp_path, "eval_before") == (done[:2], {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["eval_before.jsonl.zst", "step_000003.jsonl.zst"]
    path = dump_path(tmp_path, 3)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RunError, match=str(path)):
        read_dump(tmp_path, 3)
    with pytest.raises(RunError, match="step_000009"):
        read_dump(tmp_path, 9)


def test_a_worker_without_a_checkpoint_says_so(engine, tmp_path):
    with (
        RolloutWorker(settings(tmp_path), [engine.url], None, tmp_path) as w,
        pytest.raises(UsageError, match=r"config\.json is missing"),
    ):
        roll(w, None)


def test_a_killed_worker_is_reported(engine, checkpoints, tmp_path):
    with RolloutWorker(settings(checkpoints["chain"]), [engine.url], None, tmp_path) as w:
        os.kill(w._process.pid or 0, signal.SIGKILL)
        with pytest.raises(RunError, match="exit code -9"):
            roll(w, None)


def test_a_worker_ends_with_its_leader(checkpoints, tmp_path):
    leader = tmp_path / "leader.py"
    leader.write_text(
        "import os, sys\n"
        "from megatron_mmsr1.config import RunConfig\n"
        "from megatron_mmsr1.rollout.worker import RolloutWorker\n"
        "if __name__ == '__main__':\n"
        f"    cfg = RunConfig.model_validate_json({settings(checkpoints['chain']).model_dump_json()!r})\n"
        "    w = RolloutWorker(cfg, ['http://127.0.0.1:9'], None, sys.argv[1])\n"
        "    w._wait_ready()\n"
        "    print(w._process.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, str(leader), str(tmp_path)], capture_output=True, text=True, cwd=ROOT, timeout=300)
    pid = int(done.stdout.splitlines()[0])
    until = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < until, "the worker outlives its leader"
        time.sleep(0.1)


def test_an_engine_killed_in_mid_rollout_fails_its_trajectories_only(checkpoints, tmp_path):
    """A server of its own dies while turns of minutes are in flight: all end, as the engine's fault, and nothing hangs."""
    cfg = settings(checkpoints["random"])
    cfg.engine.outage_s = 0  # nobody replaces it, as a run would
    cfg.protocol.max_turn_tokens = 3000
    cfg.protocol.max_response_tokens = 3500
    with launch_engine(checkpoints["random"], tmp_path / "engine.log") as server:
        with RolloutWorker(cfg, [server.url], None, tmp_path / "images") as w:

            def kill() -> None:
                while not httpx.get(f"{server.url}/v1/loads", trust_env=False).json()["loads"][0]["num_running_reqs"]:
                    time.sleep(0.05)
                os.killpg(os.getpgid(server.child.process.pid), signal.SIGKILL)

            threading.Thread(target=kill).start()
            done = roll(w, None, group_size=16)
            assert len(done) == 96
            failed = [t for t in done if t.status is Status.ENGINE_ERROR]
            assert failed and all(t.reward is None and t.infrastructure_failure for t in failed)
            assert all(server.url in t.extra["error"] for t in failed)
        with pytest.raises(RunError, match=r"engine\.log"):
            server.check()
