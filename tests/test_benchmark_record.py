"""What a benchmark's result names: the commit of the code that was measured, whatever was committed since beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from loop_fixtures import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import learning
import record


def git(root: Path, *args: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    return subprocess.run(["git", "-C", str(root), *who, *args], check=True, capture_output=True, text=True).stdout.strip()


def commit_all(root: Path, message: str) -> str:
    git(root, "add", "-A")
    git(root, "commit", "-qm", message)
    return git(root, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "megatron_mmsr1").mkdir()
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "megatron_mmsr1" / "train.py").write_text("a")
    return tmp_path


def test_a_result_does_not_change_the_commit_that_it_names(checkout: Path) -> None:
    measured = commit_all(checkout, "code")
    assert record.commit(checkout) == measured
    (checkout / "benchmarks" / "results" / "learning.json").write_text("{}")
    (checkout / "README.md").write_text("a page")
    assert record.commit(checkout) == measured
    commit_all(checkout, "results")
    assert record.commit(checkout) == measured
    (checkout / "megatron_mmsr1" / "train.py").write_text("b")
    assert record.commit(checkout) == f"{measured}+changes"


def test_new_code_is_another_commit(checkout: Path) -> None:
    first = commit_all(checkout, "code")
    (checkout / "megatron_mmsr1" / "train.py").write_text("b")
    second = commit_all(checkout, "more code")
    assert record.commit(checkout) == second != first


def test_outside_a_checkout_nothing_is_made_up(tmp_path: Path) -> None:
    assert record.commit(tmp_path) == "unknown"


def test_a_record_names_commit_day_and_machine(tmp_path: Path) -> None:
    record.record(tmp_path / "r.json", [{"n": 1}])
    said = json.loads((tmp_path / "r.json").read_text())
    assert said["rows"] == [{"n": 1}] and said["machine"]["python"] and said["commit"] == record.commit()
    assert len(said["date"].split("-")) == 3


def test_a_learning_result_of_other_code_is_not_this_ones(tmp_path: Path) -> None:
    result = tmp_path / "learning-grpo-seed0.json"
    result.write_text("{}")  # as they were written before: neither commit nor day
    assert learning.measured_by(result) != record.commit()
    result.write_text(json.dumps(record.provenance()))
    assert learning.measured_by(result) == record.commit()


def test_maths_has_a_table_of_its_own(tmp_path: Path) -> None:
    """Its rows have no tools and no oracle; the Atlas's have no column for the form."""
    rows = [[{"accuracy": acc, "format": form, "reward": acc + form}] for acc, form in ((0.5, 0.75), (0.875, 1.0))]
    path = tmp_path / "learning-maths-seed0.json"
    path.write_text(json.dumps({"variant": "maths", "seed": 0, "before": rows[0], "after": rows[1], "train_seconds": 90}))
    line = learning.maths_table([path]).splitlines()[2]
    assert line.startswith("| maths, seed 0 | 0.50 | 0.88 | 0.75 | 1.00 | 1.25 | 1.88 | 1.5 | met |")
    assert len(learning.table([path]).splitlines()) == 2
