"""Hugging Face checkpoint directories: checked before anything loads them, copied beside exported weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from megatron_mmsr1.checkpoints.manifest import MANIFEST
from megatron_mmsr1.errors import RunError

INDEX = "model.safetensors.index.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def weight_files(path: Path) -> list[Path]:
    """The safetensors files, each present and with a readable header. Raises RunError naming the one that is not."""
    index = path / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError) as e:
            raise RunError(f"{index} is damaged ({e!r}): download the checkpoint again") from e
    else:
        names = ["model.safetensors"]
    files = [path / n for n in names]
    for f in files:
        if not f.is_file():
            raise RunError(f"checkpoint shard {f} is missing: download or export the checkpoint again")
        try:
            with safe_open(f, "pt"):
                pass
        except (SafetensorError, OSError) as e:
            raise RunError(f"checkpoint shard {f} is damaged ({e}): download or export the checkpoint again") from e
    return files


def weight_names(path: Path) -> set[str]:
    """The names of all weights in the checkpoint."""
    names: set[str] = set()
    for f in weight_files(path):
        with safe_open(f, "pt") as handle:
            names |= set(handle.keys())
    return names


def set_dtype(directory: Path, dtype: torch.dtype) -> None:
    """Let config.json say the dtype that the weights beside it have, in each section that says one, and at the top level.
    transformers and engines load weights in the dtype that stands there."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    name = str(dtype).removeprefix("torch.")
    for section in [config, *(v for v in config.values() if isinstance(v, dict))]:
        for key in ("dtype", "torch_dtype"):  # the newer and the older name
            if key in section:
                section[key] = name
    if "dtype" not in config and "torch_dtype" not in config:
        config["torch_dtype"] = name
    file.write_text(json.dumps(config, indent=2) + "\n")


def copy_companions(source: Path, target: Path) -> None:
    """Config, tokenizer, processor and template files: everything beside the weights."""
    for f in source.iterdir():
        if f.is_file() and not f.name.endswith(_WEIGHTS) and f.name not in (INDEX, MANIFEST) and not f.name.startswith("."):
            shutil.copyfile(f, target / f.name)
