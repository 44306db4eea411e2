"""`mmsr1 eval` and rollout-only on an engine that runs already and that others have used: the verbs, a real engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_fixtures import COLD_START, ROOT, settings

from megatron_mmsr1 import config
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.eval.results import EvalResult
from megatron_mmsr1.rollout import engines
from megatron_mmsr1.rollout.dump import dump_files, read_meta
from megatron_mmsr1.run import launch


@pytest.fixture
def used_before(atlas_engine: Any) -> Iterator[str]:
    """The engine of the shipped model as a training run leaves one: under another version. Put back after."""
    c = engines.get("sglang").control(atlas_engine.url)
    c.load(COLD_START, 7)
    yield atlas_engine.url
    c.load(COLD_START, 0)


@pytest.mark.slow
def test_any_version_is_evaluated_and_rolled_out_from_and_another_model_refused(
    used_before: str, atlas_search: str, atlas_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    out = tmp_path / "run"
    more = [f"engine.urls=[{used_before}]", f"search.url={atlas_search}", f"model.path={COLD_START}", "train.eval_limit=2"]
    more += ["train.mode=rollout-only"]
    cfg = config.load("configs/atlas.yaml", settings(atlas_world, out, *more, "train.steps=1", "data.prompts_per_step=1"))
    for _ in range(2):
        launch.evaluate(cfg, policies=False)
    result = EvalResult.load(out / "eval" / "model.json")
    assert result.overall.n == 2 and result.meta["weights"] == 7
    launch.train(cfg)
    assert [read_meta(f)["weights"] for f in dump_files(out / "rollouts", 0)] == [7]

    other = cfg.model_copy(update={"model": cfg.model.model_copy(update={"path": str(COLD_START.parent / "untilted")})})
    with pytest.raises(UsageError, match=rf"engine\.urls: {used_before} serves {COLD_START}, whose weights are not those of"):
        launch.evaluate(other, policies=False)
