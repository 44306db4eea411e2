"""Which checkpoints are removed: never the one to resume from, the newest, the best, nor what is being written."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import megatron_mmsr1.cli.entry as cli
from megatron_mmsr1 import config
from megatron_mmsr1.checkpoints import manifest
from megatron_mmsr1.checkpoints.retention import Rule, Saved, removable
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.eval.results import EvalResult, Row
from megatron_mmsr1.run.saved import prune, scores

SAVED = st.builds(
    lambda step, hours, score: Saved(f"step_{step:06d}", step, hours, score),
    st.integers(1, 40),
    st.floats(0, 100),
    st.none() | st.floats(-1, 1) | st.sampled_from([0.25, 0.5]),
)
FOUND = st.lists(SAVED, min_size=1, max_size=20, unique_by=lambda s: s.step)
RULES = st.builds(Rule, st.integers(1, 4), st.integers(0, 5), st.floats(0, 100), st.integers(0, 3))


@given(FOUND, RULES, st.data())
def test_what_is_kept(found: list[Saved], rule: Rule, data: st.DataObject) -> None:
    current = data.draw(st.sampled_from(found))
    latest = data.draw(st.sampled_from([current.name, *(s.name for s in found), ""]))
    gone = removable(found, rule, current=current.step, latest=latest)
    by_name = {s.name: s for s in found}
    left = [s for s in found if s.name not in gone]
    assert latest not in gone and current.name not in gone
    assert all(by_name[name].step < current.step for name in gone), "later ones are not ours to judge"
    assert gone == sorted(gone)
    for name in gone:
        s = by_name[name]
        assert s.hours >= rule.hours and not (rule.every and s.step % rule.every == 0)
        assert sum(s.step < other.step <= current.step for other in left) >= rule.last, "younger ones fill the last places"
        if s.score is not None:
            better = [o for o in left if o.score is not None and (o.score, o.step) > (s.score, s.step)]
            assert len(better) >= rule.best
    # Nothing stays without a reason: what is left of the earlier ones is kept by a part of the rule.
    earlier = sorted((s.step for s in found if s.step < current.step), reverse=True)[: rule.last - 1]
    ranked = sorted((s for s in found if s.score is not None), key=lambda s: (s.score, s.step), reverse=True)[: rule.best]
    for s in left:
        assert (
            s.step >= current.step
            or s.name == latest
            or s.step in earlier
            or s.hours < rule.hours
            or (rule.every and s.step % rule.every == 0)
            or s in ranked
        )


@given(FOUND, RULES)
def test_a_second_time_removes_nothing_more(found: list[Saved], rule: Rule) -> None:
    current = max(found, key=lambda s: s.step)
    gone = removable(found, rule, current=current.step, latest=current.name)
    left = [s for s in found if s.name not in gone]
    assert removable(left, rule, current=current.step, latest=current.name) == []


def evaluated(out: Path, step: int, reward: float, name: str = "") -> None:
    row = Row("overall", 10, accuracy=1 - reward, reward=reward, format=1.0, search_share=0.5, search_ratio=0.5)
    name = name or f"step_{step:06d}"
    EvalResult(name, [row], meta={"weights": step}).save(out / "eval" / f"{name}.json")


def written(out: Path, step: int, *, hours: float = 0.0) -> Path:
    directory = out / "checkpoints" / f"step_{step:06d}"
    directory.mkdir(parents=True)
    (directory / "shard").write_bytes(b"x" * 1000)
    held = manifest.of_directory(directory, manifest.checksums(directory, ["shard"]), layout=[2, 1, 4], step=step)
    held.write(directory)
    at = time.time() - 3600 * hours
    os.utime(directory / manifest.MANIFEST, (at, at))
    (out / "checkpoints" / "latest").write_text(directory.name)
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints of the steps 10 to 60, an hour apart; evaluations of 20, 30 and 60, of which 30 is best."""
    for step in range(10, 70, 10):
        written(tmp_path, step, hours=(60 - step) / 10 + 0.01)
    for step, reward, name in ((20, 0.4, ""), (30, 0.5, ""), (60, 0.3, "after"), (0, 0.9, "before")):
        evaluated(tmp_path, step, reward, name)
    rows = [{"step": s, "loss": abs(s - 12), "reward/mean": 0.01 * s} for s in range(60)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def kept(run: Path, **train: Any) -> list[int]:
    raw = {"output": str(run), "model": {"path": "-"}, "train": {"save_interval": 10, "eval_interval": 10} | train}
    (run / "checkpoints" / ".step_000005.part").mkdir()  # as one that is being written
    prune(config.parse(raw), run / "checkpoints" / "step_000060")
    assert (run / "checkpoints" / ".step_000005.part").is_dir()
    return sorted(int(d.name[5:]) for d in (run / "checkpoints").glob("step_*"))


@pytest.mark.parametrize(
    ("train", "left"),
    [
        ({"keep_checkpoints": 1}, [60]),
        ({"keep_checkpoints": 3}, [40, 50, 60]),
        ({"keep_checkpoints": 1, "keep_every": 20}, [20, 40, 60]),
        ({"keep_checkpoints": 1, "keep_hours": 2.5}, [40, 50, 60]),
        ({"keep_checkpoints": 1, "keep_best": 1}, [30, 60]),
        ({"keep_checkpoints": 1, "keep_best": 1, "keep_metric": "eval/accuracy"}, [60]),
        ({"keep_checkpoints": 1, "keep_best": 2}, [20, 30, 60]),
        ({"keep_checkpoints": 1, "keep_best": 1, "keep_metric": "-loss"}, [10, 60]),
        ({"keep_checkpoints": 1, "keep_best": 2, "keep_metric": "reward/mean"}, [50, 60]),
    ],
)
def test_a_run_s_rule(run: Path, train: dict[str, Any], left: list[int]) -> None:
    assert kept(run, **train) == left


def test_the_one_that_a_person_named_stays(run: Path) -> None:
    (run / "checkpoints" / "latest").write_text("step_000020\n")
    assert kept(run, keep_checkpoints=1) == [20, 60]


def test_a_damaged_evaluation_removes_nothing(run: Path) -> None:
    (run / "eval" / "step_000030.json").write_text("{")
    with pytest.raises(RunError, match=r"step_000030\.json"):
        kept(run, keep_checkpoints=1, keep_best=1)
    assert len([*(run / "checkpoints").glob("step_*")]) == 6


def test_the_scores_are_those_after_so_many_steps(run: Path) -> None:
    assert scores(run, "eval/reward") == {20: 0.4, 30: 0.5, 60: 0.3}
    assert scores(run, "-loss")[13] == 0.0, "the row of step 12 is of the weights after 13 steps"
    assert scores(run, "eval/no_such") == {} == scores(run, "no_such")


def test_the_best_by_an_evaluation_needs_checkpoints_to_choose_from() -> None:
    for interval in (0, 15):
        train = {"keep_best": 1, "save_interval": 10, "eval_interval": interval}
        with pytest.raises(UsageError, match=r"train\.keep_best.*train\.eval_interval"):
            config.parse({"model": {"path": "-"}, "train": train})
    config.parse({"model": {"path": "-"}, "train": {"keep_best": 1, "keep_metric": "-loss"}})


# -------------------------------------------------------------------------------------------------------------- the verbs
def rows_of(run: Path, capsys: pytest.CaptureFixture[str], *more: str) -> list[dict[str, Any]]:
    assert cli.main(["checkpoint", "list", str(run), "--json", *more]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_list_tells_of_each(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows_of(run, capsys)
    assert [r["step"] for r in found] == [10, 20, 30, 40, 50, 60]
    assert [r["latest"] for r in found] == [False] * 5 + [True]
    third = found[2]
    assert third["name"] == "step_000030" and third["layout"] == "TP2 x PP1 x DP4" and third["bytes"] == 1000
    assert (third["eval/reward"], third["eval/accuracy"], third["loss"]) == (0.5, 0.5, 17)
    assert third["hours"] == pytest.approx(3.01, abs=0.05) and third["fault"] == "" and not third["verified"]
    assert cli.main(["checkpoints", "list", str(run)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("TP2 x PP1 x DP4") == 6 and shown.count("latest") == 1 and shown.endswith("all there, the latest\n")


def test_the_list_sees_what_is_broken(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = run / "checkpoints"
    (home / "step_000010" / "shard").write_bytes(b"y" * 1000)
    (home / "step_000020" / "shard").write_bytes(b"x")
    (home / "step_000030" / "manifest.json").unlink()
    quick = {r["step"]: r["fault"] for r in rows_of(run, capsys)}
    assert quick[10] == "" and "torn" in quick[20] and "manifest.json is missing" in quick[30] and quick[40] == ""
    thorough = {r["step"]: r for r in rows_of(run, capsys, "--verify")}
    assert "has changed" in thorough[10]["fault"] and thorough[40]["verified"] and not thorough[20]["verified"]


def test_verify_tells_programs_too(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "step_000010" / "shard").write_bytes(b"y" * 1000)
    assert cli.main(["checkpoints", "verify", str(run), "--json"]) == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [f["whole"] for f in found] == [False] + [True] * 5 and "has changed" in found[0]["faults"][0]


def test_a_run_without_checkpoints(tmp_path: Path) -> None:
    assert cli.main(["checkpoints", "list", str(tmp_path)]) == 2
    assert cli.main(["checkpoints", "export", str(tmp_path), str(tmp_path / "out")]) == 2
