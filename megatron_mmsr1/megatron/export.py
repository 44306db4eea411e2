"""The policy as a Hugging Face checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from megatron_mmsr1.checkpoints import manifest
from megatron_mmsr1.data import files
from megatron_mmsr1.megatron import hf
from megatron_mmsr1.megatron.model import Built
from megatron_mmsr1.megatron.parallel import Parallel
from megatron_mmsr1.megatron.weights_id import weights_id

SHARD_BYTES = 5 << 30


def write(model: Built, source: Path, target: Path, parallel: Parallel, *, step: int | None = None) -> None:
    """All weights as safetensors in `target`, with every file that stands beside the weights in `source`.

    Written next to `target` and renamed, so that a reader sees a complete checkpoint or none; an older one there is replaced.
    Collective: every rank calls it; rank 0 writes. With the number of train `step`s a manifest.json names the weights.
    """
    name_of_weights = "" if step is None else weights_id(model, parallel)
    part = target
    writer = None
    if parallel.rank == 0:
        part = files.fresh_directory(target)
        writer = _Writer(part)
    for name, weight in model.bridge.export_hf_weights(model.chunks, cpu=True, show_progress=False):
        if writer is not None:
            writer.add(name, weight)
    if writer is not None:
        writer.close()
        hf.copy_companions(source, part)
        hf.set_dtype(part, model.config.params_dtype)
        if step is not None:
            digests = manifest.checksums(part, [f.name for f in part.glob("*.safetensors")])
            manifest.of_directory(part, digests, step=step, weights=name_of_weights).write(part)
        files.replace_directory(part, target)
    parallel.barrier()


class _Writer:
    """Collects weights into files of at most `SHARD_BYTES`, named and indexed as transformers does."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.held: dict[str, torch.Tensor] = {}
        self.bytes = 0
        self.shards: list[list[str]] = []
        self.total = 0

    def add(self, name: str, weight: torch.Tensor) -> None:
        if self.held and self.bytes + weight.nbytes > SHARD_BYTES:
            self._flush()
        # Views would write (and alias) the whole storage.
        self.held[name] = weight.detach().clone(memory_format=torch.contiguous_format)
        self.bytes += weight.nbytes

    def _flush(self) -> None:
        file = self.directory / f"{len(self.shards)}.safetensors"
        save_file(self.held, file, metadata={"format": "pt"})
        file.chmod(0o644)  # safetensors makes it private; an engine may run as another user
        self.shards.append(list(self.held))
        self.total += self.bytes
        self.held, self.bytes = {}, 0

    def close(self) -> None:
        self._flush()
        n = len(self.shards)
        if n == 1:
            (self.directory / "0.safetensors").rename(self.directory / "model.safetensors")
            return
        weight_map = {}
        for i, names in enumerate(self.shards):
            file = f"model-{i + 1:05d}-of-{n:05d}.safetensors"
            (self.directory / f"{i}.safetensors").rename(self.directory / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(weight_map.items()))}
        (self.directory / hf.INDEX).write_text(json.dumps(index, indent=2))
