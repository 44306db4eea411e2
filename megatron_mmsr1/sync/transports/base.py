"""The weight transport seam's interface."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from megatron_mmsr1.config.section import Section

if TYPE_CHECKING:
    import torch

    from megatron_mmsr1.rollout.engines.base import Control


class Transport(Protocol):
    """Open for one run; used by rank 0 alone."""

    def push(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Put these weights into every engine under `version`; returns once each was seen to answer with them.

        `weights` are all the model's tensors, each whole, by its Hugging Face name, one at a time: a transport holds a bounded
        part of them, never the whole model. They come from a collective, so the caller drains what a transport that raised has
        left. No turn may run meanwhile that is to be trained on. Caches of the old weights are dropped.

        Raises RunError that names each engine that failed, and which weights the engines hold now. An engine whose weights are
        not known is left paused, and samples nothing.
        """
        ...

    def close(self) -> None: ...


class TransportPart(Protocol):
    """A part of the seam. `Settings` are its keys in `train.sync`."""

    @property
    def Settings(self) -> type[Section]: ...

    def open(self, settings: Any, engines: Sequence[Control], *, home: Path, model: Path) -> Transport:
        """`engines` is to be read at each push: one that nobody can reach leaves the list, and comes back.
        `home`: the run's directory for weights, which the transport may write to. `model`: the checkpoint that the run
        started from, whose config and tokenizer belong to all later weights. Raises UsageError where it cannot work."""
        ...
