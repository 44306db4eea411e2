"""What an evaluation is of: these weights, these questions, these settings. Its result is good for nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from megatron_mmsr1.checkpoints import manifest
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.config.affects import fingerprint
from megatron_mmsr1.config.section import Affects
from megatron_mmsr1.data.dataset import Prompt

Key = dict[str, str]

HEADER_BYTES, SAMPLES, SAMPLE_BYTES = 8, 16, 4096  # of a safetensors file: its header's length; what is read of its data


def evaluation_key(cfg: RunConfig, prompts: Sequence[Prompt], weights: str) -> Key:
    """{"weights", "data", "config"}; equal keys are one evaluation. `weights` names the weights by content."""
    return {"weights": weights, "data": questions_id(prompts), "config": fingerprint(cfg, (Affects.ROLLOUT,))}


def questions_id(prompts: Sequence[Prompt]) -> str:
    """16 hex digits over every question with its pictures and answers, in order."""
    said = hashlib.sha256()
    for p in prompts:
        pictures = [hashlib.sha256(i).hexdigest() for i in p.images]
        said.update(json.dumps([p.prompt_id, p.question, pictures, p.golden_answers, p.category]).encode())
    return said.hexdigest()[:16]


def model_id(directory: Path) -> str:
    """A name for the weights of a Hugging Face checkpoint: the one in its manifest, else of samples of its files.

    The samples (16 of 4 KiB a file, with its header) tell models apart at any size in milliseconds; a model that differs from
    another in a few weights only may get the same name.
    """
    if (directory / manifest.MANIFEST).is_file() and (named := manifest.read(directory, manifest.EXPORT_AGAIN).weights):
        return named
    said = hashlib.sha256()
    for file in sorted(directory.glob("*.safetensors")):
        size = file.stat().st_size
        with file.open("rb") as f:
            length = int.from_bytes(f.read(HEADER_BYTES), "little")
            said.update(f"{size} {length}".encode() + f.read(min(length, size)))
            for i in range(SAMPLES):
                f.seek(HEADER_BYTES + length + max(0, size - HEADER_BYTES - length - SAMPLE_BYTES) * i // (SAMPLES - 1))
                said.update(f.read(SAMPLE_BYTES))
    return "files-" + said.hexdigest()[:16]
