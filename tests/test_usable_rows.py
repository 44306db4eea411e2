"""Rows that cannot be used are found once, by one reader, and the same ones that a dataset would leave out."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_mmsr1.data import dataset, usable_rows
from megatron_mmsr1.data.dataset import PromptDataset
from megatron_mmsr1.data.usable_rows import usable_rows as find


@pytest.fixture
def table(tmp_path: Path, atlas_world: Path) -> Path:
    """64 rows in row groups of 10, of which rows 3, 10 and 63 hold a broken picture."""
    whole = pq.read_table(atlas_world / "train.parquet")
    rows = whole.to_pylist()
    for bad in (3, 10, 63):
        rows[bad]["images"] = [{"bytes": b"not a picture"}]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=whole.schema), path, row_group_size=10)
    return path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that any dataset reads, as they are read."""
    seen: list[int] = []
    original = PromptDataset._read

    def counted(self: PromptDataset, row: int) -> dataset.Prompt:
        seen.append(row)
        return original(self, row)

    monkeypatch.setattr(PromptDataset, "_read", counted)
    return seen


def test_the_same_rows_as_a_dataset_leaves_out(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usable_rows, "BLOCK", 7)  # several threads, each with blocks of its own
    found = find([table, table])
    good = [i for i in range(64) if i not in (3, 10, 63)]
    assert found == [*good, *(64 + i for i in good)]
    mine, theirs = PromptDataset([table], bad_rows="skip", usable=good), PromptDataset([table], bad_rows="skip")
    assert (len(mine), mine.skipped) == (len(theirs), theirs.skipped) == (61, 3)
    assert [mine[i].prompt_id for i in range(61)] == [theirs[i].prompt_id for i in range(61)]


def test_with_the_rows_known_nothing_is_decoded(table: Path, read: list[int]) -> None:
    """The other ranks, which get the rows from the first one, and every later start of the run."""
    cache = table.with_name("rows.json")
    good = find([table], cache)
    assert sorted(read) == list(range(64))
    read.clear()
    assert find([table], cache) == good and PromptDataset([table], bad_rows="skip", usable=good).skipped == 3
    assert read == []


def test_changed_files_are_read_again_and_others_kept_beside(table: Path, read: list[int]) -> None:
    cache, other = table.with_name("rows.json"), table.with_name("other.parquet")
    other.write_bytes(table.read_bytes())
    find([table], cache)
    find([other], cache)
    pq.write_table(pq.read_table(table).slice(0, 5), table)
    read.clear()
    assert find([table], cache) == [0, 1, 2, 4]
    assert sorted(read) == [0, 1, 2, 3, 4]
    read.clear()
    assert len(find([other], cache)) == 61 and read == []


def test_a_damaged_cache_is_made_anew(table: Path) -> None:
    cache = table.with_name("rows.json")
    cache.write_text("{")
    assert len(find([table], cache)) == 61
    assert len(find([table], cache)) == 61
