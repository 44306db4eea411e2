"""Which rows of parquet files can be used: found once by decoding every picture, kept beside the run, read after that."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

from megatron_mmsr1.data import files
from megatron_mmsr1.data.dataset import PromptDataset
from megatron_mmsr1.data.rows import BadRow

BLOCK = 256  # rows that one thread reads in turn


def usable_rows(paths: Sequence[str | Path], cache: Path | None = None) -> list[int]:
    """The rows, over all files in order, that `PromptDataset` can read. `cache`: a JSON file that keeps them, by the files'
    names, sizes and times of change. Raises UsageError for a file that is no parquet file of a known layout."""
    signature = [[str(p), os.stat(p).st_size, os.stat(p).st_mtime_ns] for p in paths if Path(p).is_file()]
    kept = _kept(cache) if cache is not None else {}
    name = json.dumps([str(p) for p in paths])
    if name in kept and kept[name]["files"] == signature:
        return kept[name]["rows"]
    data = PromptDataset(paths)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        starts = range(0, len(data), BLOCK)
        stops = (min(start + BLOCK, len(data)) for start in starts)
        rows = [row for block in pool.map(_good, repeat(paths), starts, stops) for row in block]
    if cache is not None:
        files.write_text(cache, json.dumps(kept | {name: {"files": signature, "rows": rows}}) + "\n")
    return rows


def _good(paths: Sequence[str | Path], start: int, stop: int) -> list[int]:
    data = PromptDataset(paths)  # a thread's own: its cache of row groups is not for several
    return [row for row in range(start, stop) if _readable(data, row)]


def _readable(data: PromptDataset, row: int) -> bool:
    try:
        data[row]
    except BadRow:
        return False
    return True


def _kept(cache: Path) -> dict[str, Any]:
    try:
        return json.loads(cache.read_text())
    except (FileNotFoundError, ValueError):  # nothing yet, or torn: the rows are read again
        return {}
