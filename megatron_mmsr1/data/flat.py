"""Many trajectories as one buffer a field: how they are sent and kept.

Layout: the descriptions (everything but the buffers, one JSON object a trajectory), then, for each field of
`trajectory.BUFFERS`, the values of all trajectories end to end. Lengths are in the descriptions, so that no offset is stored.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from megatron_mmsr1.trajectory import BUFFERS, Trajectory

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY


def described(trajectories: Sequence[Trajectory], *, texts: bool = True) -> Iterator[bytes]:
    """One line of JSON a trajectory, with the length of each of its buffers (null for one that it has not). `texts` false: the
    turns' texts are left empty."""
    for t in trajectories:
        sizes = {name: None if getattr(t, name) is None else len(getattr(t, name)) for name in BUFFERS}
        row: dict[str, Any] = t.described() | {"buffers": sizes}
        if not texts:
            row["turns"] = [turn | {"text": ""} for turn in row["turns"]]
        yield orjson.dumps(row, option=_OPTIONS)


def buffers(trajectories: Sequence[Trajectory]) -> Iterator[memoryview]:
    """The bytes of each buffer in the order of the layout, not copied."""
    for name in BUFFERS:
        for t in trajectories:
            values = getattr(t, name)
            if values:
                yield memoryview(values).cast("B")


def read(descriptions: Sequence[bytes], data: bytes | bytearray | memoryview) -> list[Trajectory]:
    """The inverse. Raises ValueError if there are not as many bytes as the descriptions tell of."""
    rows: list[dict[str, Any]] = [orjson.loads(line) for line in descriptions]
    sizes = [row.pop("buffers") for row in rows]
    view, at = memoryview(data), 0
    told = sum((size[name] or 0) * array(code).itemsize for name, code in BUFFERS.items() for size in sizes)
    if told != len(view):
        raise ValueError(f"{len(view)} bytes of buffers where {told} were described")
    for name, code in BUFFERS.items():
        width = array(code).itemsize
        for row, size in zip(rows, sizes, strict=True):
            if size[name] is None:
                row[name] = None
                continue
            end = at + size[name] * width
            values: array[Any] = array(code)
            values.frombytes(view[at:end])
            row[name], at = values, end
    return [Trajectory.from_dict(row) for row in rows]


def pack(trajectories: Sequence[Trajectory], *, texts: bool = True) -> bytearray:
    """One message: the descriptions' number and bytes, then the buffers. `unpack` gives equal trajectories back."""
    lines = list(described(trajectories, texts=texts))
    text = b"\n".join(lines)
    out = bytearray()
    out += len(lines).to_bytes(8, "little") + len(text).to_bytes(8, "little") + text
    for part in buffers(trajectories):
        out += part
    return out


def unpack(message: bytes | bytearray | memoryview) -> list[Trajectory]:
    """Raises ValueError for what `pack` did not write."""
    view = memoryview(message)
    n, size = (int.from_bytes(view[a : a + 8], "little") for a in (0, 8))
    lines = bytes(view[16 : 16 + size]).split(b"\n") if n else []
    if len(lines) != n:
        raise ValueError(f"{len(lines)} descriptions where {n} were announced")
    return read(lines, view[16 + size :])
