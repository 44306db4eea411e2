"""A run's evaluations: keyed by weights, questions and settings; what failed is asked again; a partial outage is no result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_mmsr1 import config
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.dataset import Prompt
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.eval.evaluate import TRIES, evaluate_with
from megatron_mmsr1.eval.key import evaluation_key, model_id, questions_id
from megatron_mmsr1.eval.results import EvalResult
from megatron_mmsr1.rollout.dump import dump_path, read_dump
from megatron_mmsr1.run.evaluations import rename_earlier_after
from megatron_mmsr1.trajectory import Status, Trajectory

PROMPTS = [Prompt(f"p{i}", f"question {i}", [b"picture"], ["a"]) for i in range(10)]
KEY = {"weights": "w", "data": "d", "config": "c"}


def settings(out: Path, **train: Any) -> RunConfig:
    return config.parse({"model": {"path": "m"}, "output": str(out), "train": train})


class Outage:
    """A rollout worker whose engine fails question i in its first `fails[i]` tries; all else is answered right."""

    def __init__(self, fails: dict[int, int]) -> None:
        self.fails = dict(fails)
        self.asked: list[list[int]] = []

    def generate(self, prompts: Sequence[Prompt], *, indices: Sequence[int], **_: Any) -> list[Trajectory]:
        self.asked.append(list(indices))
        return [self._one(p, i) for p, i in zip(prompts, indices, strict=True)]

    def _one(self, prompt: Prompt, i: int) -> Trajectory:
        t = Trajectory(prompt.prompt_id, f"-1/{i}", 0, prompt.question, prompt.golden_answers)
        t.append("prompt", [1], "q")
        self.fails[i] = self.fails.get(i, 0) - 1
        if self.fails[i] >= 0:
            t.status = Status.ENGINE_ERROR
            return t
        t.append("assistant", [2], "a", logprobs=[0.0], action="answer")
        t.status, t.reward, t.reward_parts = Status.ANSWERED, 1.0, {"acc": 1.0, "format": 1.0}
        return t


def run(worker: Outage, cfg: RunConfig) -> EvalResult:
    said: list[str] = []
    return evaluate_with(worker, cfg, "after", PROMPTS, KEY, weight_version=5, search=None, say=said.append)  # type: ignore[arg-type]


def test_what_failed_is_asked_again_and_alone(tmp_path: Path) -> None:
    worker = Outage({3: 1, 7: 2})
    result = run(worker, settings(tmp_path))
    assert worker.asked == [list(range(10)), [3, 7], [7]]
    assert (result.overall.n, result.overall.failed, result.overall.accuracy) == (10, 0, 1.0)
    dumped, meta = read_dump(tmp_path / "rollouts", "eval_after")
    assert [t.prompt_id for t in dumped] == [p.prompt_id for p in PROMPTS]
    assert meta["key"] == KEY == result.meta["key"]


def test_a_partial_outage_is_not_recorded(tmp_path: Path) -> None:
    worker = Outage({i: TRIES for i in range(3)})
    with pytest.raises(RunError, match=r"3 of 10 questions failed.*3 engine_error.*train\.eval_max_failed=0\.02"):
        run(worker, settings(tmp_path))
    assert not (tmp_path / "eval").exists() and not dump_path(tmp_path / "rollouts", "eval_after").exists()


def test_a_share_below_the_limit_is_recorded_and_said(tmp_path: Path) -> None:
    result = run(Outage({0: TRIES}), settings(tmp_path, eval_max_failed=0.1))
    assert (result.overall.n, result.overall.failed) == (9, 1)


def test_questions_are_told_apart_by_all_that_decides_them() -> None:
    changed = [
        replace(PROMPTS[0], question="another"),
        replace(PROMPTS[0], images=[b"another"]),
        replace(PROMPTS[0], golden_answers=["b"]),
        replace(PROMPTS[0], category="search_free"),
    ]
    ids = {questions_id(PROMPTS), questions_id(PROMPTS[:-1]), questions_id(PROMPTS[::-1])}
    ids |= {questions_id([p, *PROMPTS[1:]]) for p in changed}
    assert len(ids) == 3 + len(changed)


def test_the_key_follows_what_is_sampled_and_not_where(tmp_path: Path) -> None:
    cfg = settings(tmp_path)
    key = evaluation_key(cfg, PROMPTS, "w")
    other = cfg.model_copy(deep=True)
    other.train.steps, other.engine.urls, other.megatron.tensor_parallel = 103, ["http://e"], 2
    assert evaluation_key(other, PROMPTS, "w") == key
    other.rollout.eval_temperature = 0.5
    assert evaluation_key(other, PROMPTS, "w") != key
    assert evaluation_key(cfg, PROMPTS, "v") != key


def test_models_are_told_apart_by_their_weights(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    import shutil

    same = shutil.copytree(checkpoints["random"], tmp_path / "copy")
    assert model_id(same) == model_id(checkpoints["random"]) != model_id(checkpoints["other"])


def test_an_extended_run_keeps_its_evaluation_under_its_step(tmp_path: Path) -> None:
    cfg = settings(tmp_path, steps=5)
    run(Outage({}), cfg)
    before = EvalResult.load(tmp_path / "eval" / "after.json")
    rename_earlier_after(tmp_path, 5)
    assert EvalResult.load(tmp_path / "eval" / "after.json") == before  # the run was not extended
    rename_earlier_after(tmp_path, 8)
    assert not (tmp_path / "eval" / "after.json").exists()
    kept = EvalResult.load(tmp_path / "eval" / "step_000005.json")
    assert (kept.name, kept.rows, kept.meta) == ("step_000005", before.rows, before.meta)
    assert not dump_path(tmp_path / "rollouts", "eval_after").exists()
    assert len(read_dump(tmp_path / "rollouts", "eval_step_000005")[0]) == len(PROMPTS)
    rename_earlier_after(tmp_path, 8)  # nothing is left to rename
