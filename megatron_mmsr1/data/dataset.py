"""Questions with their pictures, from parquet files."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from megatron_mmsr1.data import parquet
from megatron_mmsr1.data.rows import BadRow, Layout, Prompt, layout_of
from megatron_mmsr1.errors import UsageError

__all__ = ["Prompt", "PromptDataset"]

CACHE_BYTES = 1 << 30  # row groups kept in memory: a shuffled epoch comes back to each many times


class PromptDataset:
    """The rows of some parquet files, in order, read a row group at a time when they are asked for.

    `dataset[i]` is a `Prompt` whose images have been decoded once, so that nobody downstream meets a broken one. Columns are
    veRL's or open-r1's (see `rows`). A row that cannot be used raises UsageError naming file, row (from 0) and column. With
    `bad_rows="skip"` such rows are left out instead: that takes a pass over all data, here or by whoever found the `usable`
    rows (`usable_rows.py`); `len` counts the good ones and `skipped` the others.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        bad_rows: Literal["error", "skip"] = "error",
        usable: Sequence[int] | None = None,
    ) -> None:
        self.paths = [Path(p) for p in paths]
        self.skipped = 0
        self._layouts: list[Layout] = []
        self._starts: list[int] = []  # first row of each row group, over all files
        self._groups: list[tuple[int, int, int]] = []  # file, row group in it, its first row in the file
        self._rows = 0
        self._index_files()
        self._cache: OrderedDict[int, parquet.Table] = OrderedDict()
        self._good: list[int] | None = None
        if bad_rows == "skip":
            self._good = list(usable) if usable is not None else [row for row in range(self._rows) if self._readable(row)]
            self.skipped = self._rows - len(self._good)

    def __len__(self) -> int:
        return self._rows if self._good is None else len(self._good)

    def __getitem__(self, i: int) -> Prompt:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        return self._read(i if self._good is None else self._good[i])

    def numbers(self, column: str) -> list[float]:
        """A column of numbers, one for each row of `self`. UsageError naming file, column and row where there is none."""
        found: list[float] = []
        for path in self.paths:
            if column not in parquet.outline(path)[0]:
                raise UsageError(f"{path} has no column {column}, which shaping.curriculum.column names")
        for number, in_file, first in self._groups:
            rows = parquet.row_group(self.paths[number], in_file, [column]).to_pylist()
            for row, value in enumerate((r[column] for r in rows), start=first):
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise BadRow(self.paths[number], row, column, f"must be a number, not {value!r:.40}")
                found.append(float(value))
        return found if self._good is None else [found[i] for i in self._good]

    def _index_files(self) -> None:
        for number, path in enumerate(self.paths):
            columns, sizes = parquet.outline(path)
            self._layouts.append(layout_of(path, columns))
            first = 0
            for group, size in enumerate(sizes):
                if size:
                    self._starts.append(self._rows)
                    self._groups.append((number, group, first))
                self._rows += size
                first += size

    def _readable(self, row: int) -> bool:
        try:
            self._read(row)
        except BadRow:
            return False
        return True

    def _read(self, row: int) -> Prompt:
        group = bisect_right(self._starts, row) - 1
        number, _, first = self._groups[group]
        within = row - self._starts[group]
        values = self._table(group).slice(within, 1).to_pylist()[0]
        return self._layouts[number].prompt(values, self.paths[number], first + within)

    def _table(self, group: int) -> parquet.Table:
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        number, in_file, _ = self._groups[group]
        table = parquet.row_group(self.paths[number], in_file, self._layouts[number].columns)
        self._cache[group] = table
        while len(self._cache) > 1 and sum(t.nbytes for t in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)
        return table

    def __getstate__(self) -> dict[str, Any]:
        # Another process reads what it needs itself; a gigabyte of cached rows need not travel.
        return self.__dict__ | {"_cache": OrderedDict()}
