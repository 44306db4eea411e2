"""Rollouts on disk: one zstd-compressed JSONL file a step, a header and then one trajectory a line; pictures stay in the store.

The header {"format", "step", "trajectories", "meta"} tells a whole file from a torn one. Lines join with other steps, runs and
metrics on prompt_id, group_id and sample_index.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import zstandard

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.trajectory import Trajectory

FORMAT = 1
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY


def dump_path(directory: str | Path, step: int | str) -> Path:
    """Where a step's rollouts are; a name (an evaluation's) in the place of the number gives NAME.jsonl.zst."""
    return Path(directory) / (f"step_{step:06d}.jsonl.zst" if isinstance(step, int) else f"{step}.jsonl.zst")


def write_dump(directory: str | Path, step: int | str, trajectories: Sequence[Trajectory], meta: dict[str, Any]) -> Path:
    """Write all or nothing, over an earlier dump of that step; returns the file. `meta` must be JSON."""
    path = dump_path(directory, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"format": FORMAT, "step": step, "trajectories": len(trajectories), "meta": meta}
    lines = [orjson.dumps(d, option=_OPTIONS) for d in (header, *(t.to_dict() for t in trajectories))]
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(zstandard.compress(b"\n".join(lines) + b"\n", level=3))
            f.flush()
            os.fsync(f.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
    except OSError:
        Path(part).unlink(missing_ok=True)
        raise
    return path


def read_meta(path: Path) -> dict[str, Any]:
    """The meta of one dump file, without its trajectories. RunError that names a damaged file."""
    try:
        with zstandard.open(path, "rt", encoding="utf-8") as f:
            return orjson.loads(f.readline())["meta"]
    except (zstandard.ZstdError, ValueError, KeyError, OSError) as e:
        raise RunError(f"{path} is damaged ({e}): delete it, and the step is rolled out again") from e


def read_dump(directory: str | Path, step: int | str) -> tuple[list[Trajectory], dict[str, Any]]:
    """The trajectories, equal to those written, and the meta. RunError that names a missing, damaged or foreign file."""
    path = dump_path(directory, step)
    if not path.is_file():
        raise RunError(f"no rollouts at {path}: was the run killed before it wrote them, or is this another run's directory?")
    try:
        with zstandard.open(path, "rb") as f:
            lines = f.read().splitlines()
        header = orjson.loads(lines[0])
        rows = [orjson.loads(line) for line in lines[1:]]
    except (zstandard.ZstdError, orjson.JSONDecodeError, IndexError) as e:
        raise RunError(f"{path} is damaged ({e}): delete it, and the step is rolled out again") from e
    if header.get("format") != FORMAT or header.get("trajectories") != len(rows):
        of = f"{header.get('trajectories')} trajectories in format {header.get('format')}"
        raise RunError(f"{path} holds {len(rows)} of {of}; this version reads whole files of format {FORMAT}")
    return [Trajectory.from_dict(row) for row in rows], header["meta"]
