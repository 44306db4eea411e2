"""Is an exported checkpoint whole? Asked before an engine is told to load it, because SGLang does not survive a torn one: its
rollback reads the same files again, and the scheduler dies of them. Nor does it notice tensors that are missing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_mmsr1.errors import RunError

# Of a safetensors file: the header's length as a 64-bit little-endian number, the header, the data.
_PREFIX = 8
SAMPLE_BYTES = 4096

Tensors = dict[str, tuple[str, tuple[int, ...]]]


def tensors(directory: Path) -> Tensors:
    """Name -> (dtype, shape) of every tensor. RunError that names what is missing, torn or doubly present."""
    if not (directory / "config.json").is_file():
        raise RunError(f"{directory}: no exported checkpoint there (config.json is missing); was the export cut short?")
    found: Tensors = {}
    for file in _files(directory):
        for name, said in _header(file).items():
            if name in found:
                raise RunError(f"{file}: {name} is in another file of this checkpoint too")
            found[name] = (said["dtype"], tuple(said["shape"]))
    return found


def differing(one: Path, other: Path) -> str:
    """A tensor whose numbers differ between two checkpoints of the same tensors; "" if none. SAMPLE_BYTES from the
    middle of each are compared, where both have one dtype: an update of all weights shows, one of a few rows may not."""
    samples = [_samples(one), _samples(other)]
    both = sorted(samples[0].keys() & samples[1].keys())
    return next((name for name, dtype in both if samples[0][name, dtype] != samples[1][name, dtype]), "")


def _samples(directory: Path) -> dict[tuple[str, str], bytes]:
    """(name, dtype) -> bytes from the middle of the tensor."""
    found: dict[tuple[str, str], bytes] = {}
    for file in _files(directory):
        with file.open("rb") as f:
            start = _PREFIX + int.from_bytes(f.read(_PREFIX), "little")
            for name, said in _header(file).items():
                begin, end = said["data_offsets"]
                f.seek(start + begin + max(0, end - begin - SAMPLE_BYTES) // 2)
                found[name, said["dtype"]] = f.read(min(SAMPLE_BYTES, end - begin))
    return found


def require_same(new: Tensors, old: Tensors, directory: Path) -> None:
    """RunError unless both hold the same tensors in the same shapes; dtypes may differ, an engine converts."""
    missing, extra = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
    shapes = [f"{n} {list(new[n][1])} for {list(old[n][1])}" for n in sorted(new.keys() & old.keys()) if new[n][1] != old[n][1]]
    faults = [
        f"{what} {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
        for what, names in (("lacks", missing), ("has unknown", extra), ("has other shapes:", shapes))
        if names
    ]
    if faults:
        raise RunError(f"{directory} is not a checkpoint of the model that the engine runs: it {'; '.join(faults)}")


def _files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        files = sorted(directory.glob("*.safetensors"))
    else:
        try:
            files = [directory / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError) as e:
            raise RunError(f"{index}: not an index of safetensors files ({e})") from e
    missing = [f.name for f in files if not f.is_file()]
    if missing or not files:
        raise RunError(f"{directory}: no {', '.join(missing) or 'safetensors file'} there; was the export cut short?")
    return files


def _header(file: Path) -> dict[str, Any]:
    """Name -> {"dtype", "shape", "data_offsets"}. RunError for a torn file."""
    size = file.stat().st_size
    with file.open("rb") as f:
        length = int.from_bytes(f.read(_PREFIX), "little")
        if size < _PREFIX + length:
            raise RunError(f"{file}: torn: {size} bytes cannot hold its header of {length}")
        try:
            header = json.loads(f.read(length))
        except ValueError as e:
            raise RunError(f"{file}: not a safetensors file ({e})") from e
    header.pop("__metadata__", None)
    end = max((t["data_offsets"][1] for t in header.values()), default=0)
    if size != _PREFIX + length + end:
        raise RunError(f"{file}: torn: {size} bytes where its header tells of {_PREFIX + length + end}")
    return header
