"""A run's logs: what a kill and a resume leave of them, and that the numbers reach every place."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from megatron_mmsr1 import config
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.run.logs import RunLog, cut_from, read_metrics


def settings(**logging: object) -> RunConfig:
    return config.parse({"model": {"path": "m"}, "logging": {"wandb": False, **logging}})


def steps(path: Path) -> list[int]:
    return [row["step"] for row in read_metrics(path)]


def test_one_flushed_line_a_step(tmp_path: Path) -> None:
    log = RunLog(tmp_path, settings(tensorboard=False))
    for step in range(3):
        log.write(step, {"loss": 0.5, "tokens": 10})
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == step + 1  # before close
    log.close()
    row = read_metrics(tmp_path / "metrics.jsonl")[2]
    assert (row["step"], row["loss"], row["tokens"]) == (2, 0.5, 10)


def test_what_is_not_finite_is_null_and_the_file_stays_json(tmp_path: Path) -> None:
    log = RunLog(tmp_path, settings(tensorboard=False))
    log.write(0, {"a": math.nan, "b": math.inf, "c": 1.0})
    log.close()
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert (row["a"], row["b"], row["c"]) == (None, None, 1.0)


def test_a_resume_reads_as_if_nothing_had_happened(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = RunLog(tmp_path, settings(tensorboard=False))
    for step in range(7):
        log.write(step, {"loss": float(step)})
    log.close()
    with path.open("a") as f:
        f.write('{"step": 7, "lo')  # killed in the middle of a write
    log = RunLog(tmp_path, settings(tensorboard=False), resume_step=4)
    assert steps(path) == [0, 1, 2, 3]
    for step in range(4, 9):
        log.write(step, {"loss": float(step)})
    log.close()
    assert steps(path) == list(range(9))


def test_a_torn_line_is_not_read_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1')
    assert steps(path) == [0]
    path.write_text('{"step": 0}\n{"ste\n{"step": 2}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl:2"):
        cut_from(path, 5)
    path.write_text('{"step": 0}\n[]\n{"step": 2}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl:2"):
        read_metrics(path)


def test_cutting_touches_nothing_it_need_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    cut_from(path, 0)
    assert not path.exists()
    path.write_text('{"step": 0}\n{"step": 1}\n')
    before = path.stat().st_ino
    cut_from(path, 2)
    assert path.stat().st_ino == before


def test_tensorboard_has_the_scalars_and_forgets_what_is_redone(tmp_path: Path) -> None:
    accumulator = import_module("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    log = RunLog(tmp_path, settings())
    for step in range(6):
        log.write(step, {"reward/mean": step / 4})
    log.close()
    log = RunLog(tmp_path, settings(), resume_step=3)
    log.write(3, {"reward/mean": 9.0})
    log.close()
    events = accumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(0, 0.0), (1, 0.25), (2, 0.5), (3, 9.0)]


def test_a_resume_cuts_the_samples_too(tmp_path: Path) -> None:
    for resume in (0, 2):
        log = RunLog(tmp_path, settings(tensorboard=False), resume_step=resume)
        for step in range(resume, 4):
            log.write(step, {"loss": 0.0})
            log.samples(step, [{"question": f"{resume}"}])
        log.close()
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(r["step"], r["rows"][0]["question"]) for r in rows] == [(0, "0"), (1, "0"), (2, "2"), (3, "2")]


def test_tensorboard_forgets_a_life_that_ended_before_its_first_checkpoint(tmp_path: Path) -> None:
    accumulator = import_module("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    for life in (1.0, 2.0):
        log = RunLog(tmp_path, settings(), resume_step=0)
        for step in range(3):
            log.write(step, {"loss": life})
        log.close()
    events = accumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 2.0), (1, 2.0), (2, 2.0)]


def test_steps_that_are_done_keep_their_lines(tmp_path: Path) -> None:
    """Rollouts without a trainer: what stands in dumps is not done again, also behind a step that has to be."""

    def life() -> set[int]:
        log = RunLog(tmp_path, settings(tensorboard=False), resume_step=1, done={0, 2})
        for step in range(3):
            if step not in log.logged:
                log.write(step, {"loss": 1.0})
        log.close()
        assert sorted(steps(tmp_path / "metrics.jsonl")) == [0, 1, 2]
        return log.logged

    life()
    assert life() == {0, 2}


def test_tensorboard_needs_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from megatron_mmsr1.run.logs import TensorBoard; import tempfile\n"
        "b = TensorBoard(Path(tempfile.mkdtemp()), 0); b.write(0, {'a': 1.0}); b.close(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_messages_go_to_the_person_and_to_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, settings(tensorboard=False))
    log.info("evaluated")
    log.warn("log-probs differ")
    log.samples(3, [{"question": "q", "answer": "a"}])
    log.close()
    assert capsys.readouterr().err == "evaluated\nwarning: log-probs differ\n"
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [line[20:] for line in lines] == ["evaluated", "warning: log-probs differ"]  # after "YYYY-MM-DD HH:MM:SS "
    assert json.loads((tmp_path / "samples.jsonl").read_text())["rows"] == [{"question": "q", "answer": "a"}]
    assert json.loads((tmp_path / "environment.json").read_text())["packages"]["torch"]


@pytest.mark.process
def test_wandb_offline_and_resumed_under_the_same_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for resume in (0, 1):
        log = RunLog(tmp_path, settings(wandb=True, tensorboard=False), resume_step=resume)
        log.write(resume, {"loss": 0.5})
        log.close()
        ids.append((tmp_path / "wandb_id").read_text())
    assert ids[0] == ids[1]
    offline = list((tmp_path / "wandb").glob(f"offline-run-*-{ids[0]}"))
    assert offline, list((tmp_path / "wandb").iterdir())


def test_wandb_without_the_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # what an import finds where the extra is not installed
    with pytest.raises(UsageError, match=r"\[wandb\]"):
        RunLog(tmp_path, settings(wandb=True, tensorboard=False))
