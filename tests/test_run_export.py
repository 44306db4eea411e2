"""What `mmsr1 export` finds below the path that it is given: the newest weights, told from files alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_mmsr1.checkpoints import manifest
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.run.export import Source, export, find


def checkpoint(run: Path, step: int) -> Path:
    directory = run / "checkpoints" / f"step_{step:06d}"
    directory.mkdir(parents=True)
    manifest.of_directory(directory, {}, step=step).write(directory)
    (run / "checkpoints" / "latest").write_text(directory.name)
    return directory


def model(run: Path, step: int | None) -> Path:
    directory = run / "model"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    if step is not None:
        manifest.of_directory(directory, {}, step=step).write(directory)
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("model: {path: m}\n")
    return tmp_path


def test_an_unfinished_run_gives_its_latest_checkpoint(run: Path) -> None:
    checkpoint(run, 2)
    newest = checkpoint(run, 4)
    assert find(run) == Source(newest, run, 4, finished=False)


def test_one_checkpoint_is_taken_as_it_is_named(run: Path) -> None:
    older = checkpoint(run, 2)
    checkpoint(run, 4)
    assert find(older) == Source(older, run, 2, finished=False)


def test_a_finished_run_gives_its_model(run: Path) -> None:
    checkpoint(run, 4)
    trained = model(run, 4)
    assert find(run) == Source(trained, run, 4, finished=True)


@pytest.mark.parametrize("step", [100, None], ids=["of step 100", "of nobody knows which"])
def test_the_model_of_a_run_that_went_on_is_not_the_newest(run: Path, step: int | None) -> None:
    model(run, step)
    newest = checkpoint(run, 103)
    assert find(run) == Source(newest, run, 103, finished=False)


def test_a_model_without_checkpoints_counts_its_steps_from_the_metrics(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    trained = model(run, None)
    assert find(run) == Source(trained, run, 2, finished=True)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run with a trained model or a checkpoint"):
        find(tmp_path)


def test_a_checkpoint_away_from_its_run_says_what_is_missing(tmp_path: Path) -> None:
    alone = checkpoint(tmp_path, 2)
    with pytest.raises(UsageError, match=r"no config\.yaml.*leave the checkpoint in its run"):
        export(alone, tmp_path / "out")


def test_a_base_model_that_is_gone_is_named_before_a_rank_is_started(run: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.yaml: model\.path: .*m/config\.json is missing"):
        export(checkpoint(run, 2), run / "out")
    assert not (run / "out").exists() and not (run / ".out.part").exists()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("{path: m}", "the run has no model.lora: export the whole model, without --adapter"),
        ("{path: m, lora: {rank: 8, alpha: 8}, freeze_vision: false}", "the run trains the vision tower or its merger too"),
    ],
)
def test_adapters_that_are_not_all_that_was_trained_are_refused(run: Path, model: str, said: str) -> None:
    (run / "config.yaml").write_text(f"model: {model}\n")
    checkpoint(run, 2)
    with pytest.raises(UsageError, match=said):
        export(run, run / "out", adapter=True)
    assert not (run / "out").exists() and not (run / ".out.part").exists()


def test_adapters_are_told_from_a_checkpoint_not_from_the_merged_model(run: Path) -> None:
    model(run, 4)
    with pytest.raises(UsageError, match="no checkpoint, where its adapters would be: export without --adapter"):
        find(run, merged=False)
    newest = checkpoint(run, 4)
    assert find(run, merged=False) == Source(newest, run, 4, finished=False)


def test_nothing_is_written_over(run: Path) -> None:
    (run / "out").mkdir()
    with pytest.raises(UsageError, match="exists"):
        export(run, run / "out")


def test_a_torn_pointer_is_named(run: Path) -> None:
    checkpoint(run, 2)
    (run / "checkpoints" / "latest").write_text("step_000009")
    with pytest.raises(RunError, match="step_000009"):
        find(run)
