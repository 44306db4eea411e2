"""Rollouts on disk: one zstd file a step and data-parallel leader, so that no rank writes another's.

Inside: a header line, one line of JSON a trajectory (everything but its tokens), then the tokens' buffers, one a field
(`flat.py`). `zstdcat FILE | head -n 5` shows the header and four trajectories. Lines join with other steps, runs and metrics on
prompt_id, group_id and sample_index. The header {"format", "step", "trajectories", "meta"} and the end mark tell a whole file
from a torn one. Files of format 1, JSON throughout, are still read.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import zstandard

from megatron_mmsr1.data import flat
from megatron_mmsr1.data.files import replacing
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.trajectory import Trajectory

FORMAT = 2
SUFFIX = ".jsonl.zst"
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY


def dump_path(directory: str | Path, step: int | str, part: int = 0, parts: int = 1) -> Path:
    """Where a step's rollouts are; a name (an evaluation's) in the place of the number gives NAME.jsonl.zst. `part`: of which
    leader, where several (`parts`) wrote one each."""
    stem = f"step_{step:06d}" if isinstance(step, int) else step
    return Path(directory) / (f"{stem}{SUFFIX}" if parts == 1 else f"{stem}.part{part:05d}of{parts:05d}{SUFFIX}")


def parts_of(file: Path) -> int:
    """How many leaders wrote the dump that this file belongs to."""
    stem = file.name.removesuffix(SUFFIX)
    return int(stem.rpartition("of")[2]) if ".part" in stem else 1


def dump_files(directory: str | Path, step: int | str) -> list[Path]:
    """The files of a step's rollouts, in the leaders' order; empty unless all of them are there."""
    whole = dump_path(directory, step)
    if whole.is_file():
        return [whole]
    stem = whole.name.removesuffix(SUFFIX)
    for parts in {parts_of(f) for f in Path(directory).glob(f"{stem}.part*{SUFFIX}")}:
        files = [dump_path(directory, step, part, parts) for part in range(parts)]
        if all(f.is_file() for f in files):
            return files
    return []


def required_files(directory: str | Path, step: int | str) -> list[Path]:
    """`dump_files`; RunError where there are none."""
    files = dump_files(directory, step)
    if not files:
        path = dump_path(directory, step)
        raise RunError(f"no rollouts at {path}: was the run killed before it wrote them, or is this another run's directory?")
    return files


def write_dump(
    directory: str | Path,
    step: int | str,
    trajectories: Sequence[Trajectory],
    meta: dict[str, Any],
    *,
    part: int = 0,
    parts: int = 1,
) -> Path:
    """Write all or nothing, over an earlier dump of that step, by however many leaders; returns the file. `meta` must be
    JSON."""
    path = dump_path(directory, step, part, parts)
    header = {"format": FORMAT, "step": step, "trajectories": len(trajectories), "meta": meta}
    with replacing(path) as f:
        with zstandard.ZstdCompressor(level=3).stream_writer(f, closefd=False) as out:
            out.write(orjson.dumps(header, option=_OPTIONS) + b"\n")
            for line in flat.described(trajectories):
                out.write(line + b"\n")
            for values in flat.buffers(trajectories):
                out.write(values)
        if part == 0:
            # Those of another number of leaders, before this one is there: of two whole sets none could say which is newer.
            _remove_others(directory, step, parts)
    return path


def _remove_others(directory: str | Path, step: int | str, parts: int) -> None:
    """The files of a step's dump that another number of leaders than `parts` wrote."""
    stem = dump_path(directory, step).name.removesuffix(SUFFIX)
    for file in [dump_path(directory, step), *Path(directory).glob(f"{stem}.part*{SUFFIX}")]:
        if parts_of(file) != parts:
            file.unlink(missing_ok=True)


def read_meta(path: Path) -> dict[str, Any]:
    """The meta of one dump file, without its trajectories. RunError that names a damaged file."""
    try:
        with zstandard.open(path, "rb") as f:
            return orjson.loads(_line(io.BufferedReader(f)))["meta"]
    except (zstandard.ZstdError, ValueError, KeyError, OSError) as e:
        raise RunError(f"{path} is damaged ({e}): delete it, and the step is rolled out again") from e


def read_dump(directory: str | Path, step: int | str) -> tuple[list[Trajectory], dict[str, Any]]:
    """The trajectories of all leaders, equal to those written, and the first leader's meta. RunError that names a missing,
    damaged or foreign file."""
    files = required_files(directory, step)
    found = [read_file(f) for f in files]
    return [t for trajectories, _ in found for t in trajectories], found[0][1]


def read_share(directory: str | Path, step: int | str, part: int, parts: int) -> list[Trajectory]:
    """What leader `part` of `parts` has to do with a step's rollouts: its own file, or its share of what other leaders wrote.
    Raises RunError as `read_dump` does."""
    files = dump_files(directory, step)
    if len(files) == parts:
        return read_file(files[part])[0]
    every, _ = read_dump(directory, step)
    return every[part * len(every) // parts : (part + 1) * len(every) // parts]


def read_file(path: Path) -> tuple[list[Trajectory], dict[str, Any]]:
    """One leader's. Raises RunError as `read_dump` does."""
    try:
        with zstandard.open(path, "rb") as f:
            reader = io.BufferedReader(f)
            header = orjson.loads(_line(reader))
            if header["format"] not in (1, FORMAT):
                raise RunError(f"{path} has format {header['format']}; this version reads 1 and {FORMAT}")
            lines = [_line(reader) for _ in range(header["trajectories"])]
            data = reader.read()
        if header["format"] == 1:
            return [Trajectory.from_dict(orjson.loads(line)) for line in lines], header["meta"]
        return flat.read(lines, data), header["meta"]
    except (zstandard.ZstdError, ValueError, KeyError, TypeError) as e:
        raise RunError(f"{path} is damaged ({e}): delete it, and the step is rolled out again") from e


def _line(reader: io.BufferedReader) -> bytes:
    """The next line, without its end. ValueError where none ends."""
    line = reader.readline()
    if not line.endswith(b"\n"):
        raise ValueError("it ends within a line")
    return line[:-1]
