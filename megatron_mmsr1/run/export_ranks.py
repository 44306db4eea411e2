"""The ranks' part of `mmsr1 export`: the model, a checkpoint's weights into it, and out as a Hugging Face checkpoint.

No optimizer, no data, no engine. Started by torchrun:
`python -m megatron_mmsr1.run.export_ranks CONFIG CHECKPOINT TARGET STEP [--adapter]`.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    from megatron_mmsr1.megatron import platform

    platform.install()  # before anything imports megatron.core
    from megatron_mmsr1 import config
    from megatron_mmsr1.megatron import adapter, checkpoint, export, parallel
    from megatron_mmsr1.megatron.model import build

    parser = argparse.ArgumentParser(prog="megatron_mmsr1.run.export_ranks", description=__doc__)
    for name in ("config", "checkpoint", "target"):
        parser.add_argument(name, type=Path)
    parser.add_argument("step", type=int)
    parser.add_argument("--adapter", action="store_true")
    args = parser.parse_args()
    cfg = config.load(args.config)
    ranks = parallel.init(cfg)
    source = Path(cfg.model.path)
    model = build(cfg, source, trainable=False)
    checkpoint.load_weights(model, args.checkpoint, ranks)
    if args.adapter:
        assert cfg.model.lora is not None
        adapter.write(model, cfg.model.lora, source, args.target, ranks)
    else:
        export.write(model, source, args.target, ranks, step=args.step)


if __name__ == "__main__":
    from megatron_mmsr1.errors import exit_with_message

    exit_with_message(main)
