"""Where a cold start's demonstrations come from: the same ones for a step at every start, and a bad file by its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop_fixtures import COLD_START, ROOT

from megatron_mmsr1 import config
from megatron_mmsr1.data.images import ImageStore
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.run.demonstrations import DrawnSource, FileSource, open_source
from megatron_mmsr1.trajectory import Trajectory


def demonstration(n: int) -> Trajectory:
    t = Trajectory(f"p{n}", f"g{n}", 0, "question", ["a"])
    t.append("prompt", [1, 2], "q")
    t.append("assistant", [n], "a", logprobs=[0.0], action="answer")
    return t


def write(path: Path, n: int) -> Path:
    path.write_text("".join(json.dumps(demonstration(i).to_dict(), default=lambda x: x.tolist()) + "\n" for i in range(n)))
    return path


@given(st.integers(1, 12), st.integers(1, 7), st.integers(0, 5))
def test_each_demonstration_once_an_epoch_and_the_same_at_every_start(
    tmp_path_factory: pytest.TempPathFactory, rows: int, per_step: int, seed: int
) -> None:
    path = write(tmp_path_factory.mktemp("sft") / "d.jsonl", rows)
    steps = rows  # rows x per_step examples: per_step whole epochs
    source = FileSource(path, seed)
    drawn = [[t.prompt_id for t in source.batch(step, per_step)] for step in range(steps)]
    flat = [p for batch in drawn for p in batch]
    for epoch in range(per_step):
        assert sorted(flat[epoch * rows : (epoch + 1) * rows]) == sorted(f"p{i}" for i in range(rows))
    again = FileSource(path, seed)  # resumed: later steps without the earlier ones, in any order
    assert [[t.prompt_id for t in again.batch(step, per_step)] for step in reversed(range(steps))] == drawn[::-1]


def test_a_line_that_is_no_trajectory_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", 2)
    path.write_text(path.read_text() + '{"prompt_id": 3}\n')
    with pytest.raises(UsageError, match=r"d\.jsonl:3: not a trajectory"):
        FileSource(path, 0).batch(0, 3)


def test_no_file_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"sft\.source: no file"):
        FileSource(tmp_path / "none.jsonl", 0)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UsageError, match="is empty"):
        FileSource(tmp_path / "empty.jsonl", 0)


def test_atlas_draws_the_same_for_a_step_at_every_start(tmp_path: Path) -> None:
    overrides = [f"model.path={COLD_START}", "sft.examples_per_step=4", "train.steps=3"]
    cfg = config.load(ROOT / "configs" / "atlas-sft.yaml", overrides)
    sources = [open_source(cfg, ImageStore(tmp_path / str(n) / "images")) for n in range(2)]
    assert all(isinstance(s, DrawnSource) for s in sources)
    first = [sources[0].batch(step, 4) for step in range(3)]
    resumed = sources[1].batch(2, 4)
    assert [t.to_dict() for t in resumed] == [t.to_dict() for t in first[2]]
    assert len({t.question for batch in first for t in batch}) > 1
