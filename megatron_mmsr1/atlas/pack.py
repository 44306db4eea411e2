"""A trained checkpoint in the size it ships in: `python -m megatron_mmsr1.atlas.pack SOURCE TARGET` (weights as bfloat16)."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from megatron_mmsr1.errors import UsageError, exit_with_message


def pack(source: Path, target: Path) -> None:
    """Copy a Hugging Face checkpoint with its weights rounded to bfloat16. UsageError if `source` is none."""
    import torch
    from safetensors.torch import load_file, save_file

    shards = sorted(source.glob("*.safetensors"))
    if not shards:
        raise UsageError(f"{source} holds no *.safetensors")
    weights = {k: w for shard in shards for k, w in load_file(shard).items()}
    shutil.rmtree(target, ignore_errors=True)
    # The card and the serving settings speak of the run that made it, the manifest of weights that were not rounded.
    ignore = shutil.ignore_patterns("*.safetensors", "*.index.json", "README.md", "serving.yaml", "manifest.json")
    shutil.copytree(source, target, ignore=ignore)
    packed = {k: w.to(torch.bfloat16) if w.is_floating_point() else w for k, w in weights.items()}
    # transformers finds the processor of a checkpoint by this name, which not every writer keeps.
    config = target / "tokenizer_config.json"
    named = json.loads(config.read_text()) | {"processor_class": "Qwen2_5_VLProcessor"}
    config.write_text(json.dumps(named, indent=2, sort_keys=True) + "\n")
    save_file(packed, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)  # its writer makes it private
    print(f"wrote {target}: {sum(f.stat().st_size for f in target.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":

    def main() -> None:
        if len(sys.argv) != 3:
            raise UsageError(f"{__doc__}")
        pack(Path(sys.argv[1]), Path(sys.argv[2]))

    exit_with_message(main)
