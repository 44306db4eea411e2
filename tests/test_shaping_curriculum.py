"""Easy questions first: which rows a step draws, that a resume draws the same, and where the difficulties come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_dataset import row, write

from megatron_mmsr1 import config
from megatron_mmsr1.cli import main
from megatron_mmsr1.data.dataset import PromptDataset
from megatron_mmsr1.data.sampler import ResumableSampler
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.rollout.dump import write_dump
from megatron_mmsr1.run.order import sampler_of
from megatron_mmsr1.run.preflight import curriculum
from megatron_mmsr1.shaping.curriculum import Curriculum, places
from megatron_mmsr1.shaping.success import succeeded
from megatron_mmsr1.trajectory import Status, Trajectory

levels = st.lists(st.floats(-5, 5), min_size=1, max_size=30)


@given(levels, st.floats(0.01, 1), st.integers(1, 20), st.integers(0, 40))
def test_the_open_rows_are_the_easiest_and_grow_to_all(level: list[float], start: float, steps: int, step: int) -> None:
    c = Curriculum(places(level), start, steps)
    n = c.rows(step)
    assert 1 <= n <= c.rows(step + 1) <= len(level) and c.rows(steps) == len(level)
    opened = {r for r, place in enumerate(c.places) if place < n}
    assert len(opened) == n
    assert max(level[r] for r in opened) <= min((v for r, v in enumerate(level) if r not in opened), default=9.0)


def test_it_grows_linearly() -> None:
    c = Curriculum(range(100), 0.2, 8)
    assert [c.rows(s) for s in (0, 2, 4, 6, 8, 9)] == [20, 40, 60, 80, 100, 100]


@given(
    levels, st.floats(0.01, 1), st.integers(1, 6), st.lists(st.integers(0, 20), max_size=8), st.integers(0, 8), st.booleans()
)
def test_a_step_draws_open_rows_only_and_a_resume_anywhere_continues_exactly(
    level: list[float], start: float, steps: int, takes: list[int], stop: int, shuffle: bool
) -> None:
    c = Curriculum(places(level), start, steps)

    def made() -> ResumableSampler:
        return ResumableSampler(len(level), seed=3, shuffle=shuffle, curriculum=c)

    whole = made()
    expected = [whole.take(k, s) for s, k in enumerate(takes)]
    assert [len(x) for x in expected] == takes
    assert all(c.places[r] < c.rows(s) for s, rows in enumerate(expected) for r in rows)
    first, second = made(), made()
    got = [first.take(k, s) for s, k in enumerate(takes[:stop])]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert got + [second.take(k, s) for s, k in list(enumerate(takes))[stop:]] == expected


@given(st.integers(1, 30), st.lists(st.integers(0, 40), max_size=6), st.integers(0, 9))
def test_with_all_rows_open_it_is_the_plain_order_and_rounds_of_a_step_add_up(n: int, parts: list[int], step: int) -> None:
    plain, open_all = ResumableSampler(n, seed=1, shuffle=True), Curriculum(list(range(n)), 1.0, 1)
    drawn = ResumableSampler(n, seed=1, shuffle=True, curriculum=open_all)
    assert [r for k in parts for r in drawn.take(k, step)] == plain.take(sum(parts), step)


# ----------------------------------------------------------------------------------------------------------- the column
def parsed(files: list[Path], **shaping: Any) -> config.RunConfig:
    return config.parse({"model": {"path": "m"}, "data": {"train": [str(f) for f in files]}, "shaping": shaping})


def test_the_column_of_several_files_and_of_usable_rows(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", [row(n, level=n / 2) for n in range(3)])
    b = write(tmp_path / "b.parquet", [row(n, level=9 - n) for n in range(3)])
    assert PromptDataset([a, b]).numbers("level") == [0.0, 0.5, 1.0, 9.0, 8.0, 7.0]
    assert PromptDataset([a, b], bad_rows="skip", usable=[1, 3]).numbers("level") == [0.5, 9.0]
    cfg = parsed([a, b], curriculum={"column": "level", "start": 0.5, "steps": 9})
    sampler = sampler_of(cfg, PromptDataset([a, b]))
    assert sorted(sampler.take(3, 0)) == [0, 1, 2] and sorted(set(sampler.take(12, 9))) == [0, 1, 2, 3, 4, 5]


def test_a_column_that_is_not_there_or_no_number_is_named_before_the_run(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", [row(0, level=1.0), row(1, level=2.0), row(2, level=None)])
    with pytest.raises(UsageError, match=r"a.parquet has no column hardness, which shaping.curriculum.column names"):
        curriculum(parsed([a]), "hardness")
    with pytest.raises(UsageError, match=r"a.parquet, row 2, column level: must be a number, not None"):
        curriculum(parsed([a]), "level")
    words = write(tmp_path / "b.parquet", [row(0, level="hard")])
    with pytest.raises(UsageError, match=r"b.parquet, row 0, column level: must be a number, not 'hard'"):
        curriculum(parsed([words]), "level")


@pytest.mark.parametrize("half", [{"column": "level"}, {"steps": 4}])
def test_half_a_curriculum_is_refused(half: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"shaping\.curriculum needs both column and steps"):
        parsed([], curriculum=half)


def rolled(prompt: str, acc: float | None, *, step: int, **more: Any) -> Trajectory:
    t = Trajectory(prompt, f"{step}/0", 0, "q", ["a"], status=Status.ANSWERED, reward=0.9 * (acc or 0.0), step=step, **more)
    t.reward_parts = {} if acc is None else {"acc": acc}
    t.append("prompt", [1], "q")
    return t


def test_a_success_is_a_right_answer_whatever_it_cost() -> None:
    cheap, plain = rolled("p", 1.0, step=0), rolled("p", None, step=0)
    cheap.reward = 0.2
    plain.reward = 0.4
    assert succeeded(cheap) and not succeeded(plain)
    plain.reward = 0.6
    assert succeeded(plain) and not succeeded(rolled("p", 0.0, step=0))


def test_a_run_s_rollouts_become_the_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """a:0 fails 1 of 4 over two steps, the row called x always; what an outage ended does not count; others have the mean."""
    data = write(tmp_path / "a.parquet", [row(0, data_id=None), row(1, data_id="x"), row(2)])
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(config.dump(parsed([data])))
    lost = rolled("a:2", 1.0, step=0)
    lost.status, lost.reward = Status.ENGINE_ERROR, None
    write_dump(
        run / "rollouts", 0, [rolled("a:0", 1.0, step=0), rolled("a:0", 0.0, step=0), rolled("x", 0.0, step=0), lost], {}
    )
    for part in range(2):
        write_dump(run / "rollouts", 1, [rolled("a:0", 1.0, step=1)], {}, part=part, parts=2)
    assert main(["data", "difficulty", str(run), str(tmp_path / "graded")]) == 0
    graded = tmp_path / "graded" / "a.parquet"
    assert f"wrote {graded}: 2 of 3 rows were rolled out; the others have the mean, 0.625" in capsys.readouterr().out
    assert PromptDataset([graded]).numbers("difficulty") == [0.25, 1.0, 0.625]
    one, two = pq.read_table(data), pq.read_table(graded)
    assert two.drop_columns(["difficulty"]).equals(one)
    # Once more on its own copy, of a run that trained on it: another column of that name takes its place, elsewhere only.
    (run / "config.yaml").write_text(config.dump(parsed([graded])))
    assert main(["data", "difficulty", str(run), str(tmp_path / "graded")]) == 2
    assert "is the run's own data: name another directory" in capsys.readouterr().err
    assert main(["data", "difficulty", str(run), str(tmp_path / "again")]) == 0
    assert pq.read_table(tmp_path / "again" / "a.parquet").column_names.count("difficulty") == 1


def test_a_run_without_rollouts_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(config.dump(parsed([])))
    assert main(["data", "difficulty", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "holds no scored rollouts" in capsys.readouterr().err
