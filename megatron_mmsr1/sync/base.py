"""The one interface through which new weights reach the engines.

`disk` exists. What a faster transport (NCCL between trainer and engine ranks, CUDA IPC on one machine) has to do is the same in
the same order: stop or pause generation, hand over every tensor, name the version, flush the prefix cache, whose entries were
computed by the old weights, and make sure that every engine now answers with the new version.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class WeightSync(Protocol):
    """`urls` are SGLang servers (workers, not a router, which forwards no weight updates)."""

    def push(self, directory: Path, version: int) -> None:
        """Make every engine hold the Hugging Face checkpoint in `directory` under `version`; returns once each was seen to.

        Raises RunError that names the engine and its reason; engines that refused keep the weights they had.
        """
        ...
