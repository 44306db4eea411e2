"""Parquet files as this room reads them: pyarrow has no types, and what it gives gets them here."""

# pyright: standard

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_mmsr1.data.files import unfinished
from megatron_mmsr1.errors import UsageError


class Table(Protocol):
    """Some rows in memory, as `pyarrow.Table` has them."""

    @property
    def nbytes(self) -> int: ...
    def slice(self, offset: int, length: int) -> Table: ...
    def to_pylist(self) -> list[dict[str, Any]]: ...


def outline(path: Path) -> tuple[list[str], list[int]]:
    """The names of a file's columns, and how many rows each of its row groups has. UsageError if it is no parquet file."""
    try:
        with pq.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            return file.schema_arrow.names, sizes
    except FileNotFoundError as e:
        raise UsageError(f"no data file at {path}") from e
    except (pa.ArrowInvalid, OSError) as e:
        raise UsageError(f"{path} is not a readable parquet file: {e}") from e


def row_group(path: Path, group: int, columns: Sequence[str]) -> Table:
    """These columns of one row group. UsageError if it cannot be read."""
    try:
        with pq.ParquetFile(path) as file:
            return file.read_row_group(group, columns=columns)
    except (pa.ArrowInvalid, OSError) as e:
        raise UsageError(f"{path}: row group {group} cannot be read: {e}") from e


def write(path: Path, rows: Sequence[dict[str, Any]], columns: dict[str, Any]) -> None:
    """A file of `rows`. `columns`: Arrow's name of each type ("string"), a dict of types for a struct, [type] for a list."""
    schema = pa.schema([(name, _type(said)) for name, said in columns.items()])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=1000)


def _type(said: str | dict[str, Any] | list[Any]) -> pa.DataType:
    if isinstance(said, dict):
        return pa.struct([(name, _type(part)) for name, part in said.items()])
    return pa.list_(_type(said[0])) if isinstance(said, list) else pa.type_for_alias(said)


def write_with_column(path: Path, target: Path, name: str, values: Sequence[float]) -> None:
    """A copy of `path` at `target` with one more column of floats, or another one of that name, a row group at a time."""
    at = 0
    with pq.ParquetFile(path) as file, unfinished(target) as part:
        kept = [c for c in file.schema_arrow.names if c != name]
        schema = pa.schema([file.schema_arrow.field(c) for c in kept] + [pa.field(name, pa.float64())])
        with pq.ParquetWriter(part, schema) as writer:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=kept)
                column = pa.array(values[at : at + table.num_rows], pa.float64())
                writer.write_table(table.append_column(name, column).cast(schema))
                at += table.num_rows
