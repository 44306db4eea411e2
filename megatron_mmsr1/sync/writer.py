"""A Hugging Face checkpoint written tensor by tensor: at most one file's worth is in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_mmsr1.checkpoints.manifest import MANIFEST
from megatron_mmsr1.data.files import building

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 1 << 30
INDEX = "model.safetensors.index.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def write_checkpoint(
    tensors: Iterable[tuple[str, torch.Tensor]], source: Path, target: Path, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """All `tensors` as safetensors in `target`, with every file that stands beside the weights in `source`.

    A reader sees a whole checkpoint or none; an older one of that name is exchanged for it.
    """
    with building(target, sync=False) as part:
        _write_files(tensors, part, shard_bytes)
        for f in source.iterdir():
            # The manifest of `source` names other weights.
            theirs = f.name.endswith(_WEIGHTS) or f.name in (INDEX, MANIFEST) or f.name.startswith(".")
            if f.is_file() and not theirs:
                shutil.copyfile(f, part / f.name)


def _write_files(tensors: Iterable[tuple[str, torch.Tensor]], part: Path, shard_bytes: int) -> None:
    """Files of at most `shard_bytes`, named and indexed as transformers does."""
    import torch
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    held: dict[str, torch.Tensor] = {}
    size = total = 0
    shards: list[list[str]] = []

    def flush() -> None:
        nonlocal held, size, total
        file = part / f"{len(shards)}.safetensors"
        save_file(held, file, metadata={"format": "pt"})
        file.chmod(0o644)  # safetensors makes it private; an engine may run as another user
        shards.append(list(held))
        held, total, size = {}, total + size, 0

    for name, tensor in tensors:
        if held and size + tensor.nbytes > shard_bytes:
            flush()
        # Views would write (and alias) the whole storage.
        held[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        size += tensor.nbytes
    flush()
    if len(shards) == 1:
        (part / "0.safetensors").rename(part / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (part / f"{i}.safetensors").rename(part / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (part / INDEX).write_text(json.dumps(index, indent=2))
