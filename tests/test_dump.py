"""Rollouts on disk: whole or named as damaged, one file a leader, older files still read."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
import zstandard
from test_trajectory import good

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.rollout.dump import dump_files, dump_path, read_dump, read_meta, write_dump
from megatron_mmsr1.trajectory import Trajectory


def some(n: int, start: int = 0) -> list[Trajectory]:
    out = []
    for i in range(start, start + n):
        t = good()
        t.prompt_id, t.extra = f"q{i}", {"kind": "text"}
        out.append(t)
    return out


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = write_dump(tmp_path, 3, some(4), {"weights": 3})
    assert read_dump(tmp_path, 3) == (some(4), {"weights": 3})
    assert read_meta(path) == {"weights": 3}
    write_dump(tmp_path, "eval_before", [], {})
    assert read_dump(tmp_path, "eval_before") == ([], {})


def test_each_leader_writes_its_own_and_a_missing_part_is_no_dump(tmp_path: Path) -> None:
    write_dump(tmp_path, 0, some(2), {"weights": 0}, part=0, parts=2)
    assert dump_files(tmp_path, 0) == []
    with pytest.raises(RunError, match="no rollouts at"):
        read_dump(tmp_path, 0)
    write_dump(tmp_path, 0, some(3, 2), {"weights": 0}, part=1, parts=2)
    assert [t.prompt_id for t in read_dump(tmp_path, 0)[0]] == ["q0", "q1", "q2", "q3", "q4"]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_a_step_made_anew_by_another_number_of_leaders_has_one_dump(tmp_path: Path, before: int, after: int) -> None:
    """The older set was once read in the place of the new one where it was a whole file, and either where both had parts."""
    for parts, start in ((before, 0), (after, 100)):
        for part in range(parts):
            write_dump(tmp_path, 0, some(1, start + part), {"weights": 0}, part=part, parts=parts)
            write_dump(tmp_path, "eval_after", some(1), {})
    assert len(dump_files(tmp_path, 0)) == after
    assert [t.prompt_id for t in read_dump(tmp_path, 0)[0]] == [f"q{100 + part}" for part in range(after)]
    assert len(list(tmp_path.iterdir())) == after + 1  # the evaluation's stays


def test_lines_are_json_without_tokens(tmp_path: Path) -> None:
    path = write_dump(tmp_path, 0, some(2), {})
    lines = zstandard.decompress(path.read_bytes(), max_output_size=1 << 20).split(b"\n")
    rows = [orjson.loads(line) for line in lines[:3]]
    assert rows[0]["trajectories"] == 2 and [r["prompt_id"] for r in rows[1:]] == ["q0", "q1"]
    assert "token_ids" not in rows[1] and rows[1]["buffers"]["token_ids"] == 6


@pytest.mark.parametrize("keep", [0, 1, 10, 40, -1, -9])
def test_a_torn_file_is_named(tmp_path: Path, keep: int) -> None:
    path = write_dump(tmp_path, 0, some(3), {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"step_000000.*damaged"):
        read_dump(tmp_path, 0)


def test_a_file_of_format_1_is_still_read(tmp_path: Path) -> None:
    rows = [{"format": 1, "step": 0, "trajectories": 2, "meta": {"a": 1}}, *(t.to_dict() for t in some(2))]
    dump_path(tmp_path, 0).write_bytes(zstandard.compress(b"".join(orjson.dumps(r) + b"\n" for r in rows)))
    assert read_dump(tmp_path, 0) == (some(2), {"a": 1})


def test_a_foreign_format_is_refused(tmp_path: Path) -> None:
    dump_path(tmp_path, 0).write_bytes(zstandard.compress(b'{"format": 9, "trajectories": 0, "meta": {}}\n'))
    with pytest.raises(RunError, match="format 9"):
        read_dump(tmp_path, 0)
