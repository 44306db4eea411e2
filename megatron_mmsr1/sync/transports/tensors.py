"""Weights straight into the engines, a bucket at a time: nothing is written to a disk that the engines would read.

To SGLang a bucket goes through shared memory, so trainer and engines must be on one machine; to the transformers engine over
HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.sync.checkpoint import tensors as read_tensors
from megatron_mmsr1.sync.update import everywhere, update

if TYPE_CHECKING:
    import torch

    from megatron_mmsr1.rollout.engines.base import Control

Bucket = list[tuple[str, "torch.Tensor"]]


class Settings(Section):
    name: str = "tensors"
    bucket_mb: float = Field(default=512, gt=0, description="tensors that are sent together; a larger tensor goes alone")


class TensorTransport:
    """The tensors come once; each bucket goes to all engines before the next is made."""

    def __init__(self, settings: Settings, engines: Sequence[Control], *, model: Path) -> None:
        self._engines, self._bytes = engines, int(settings.bucket_mb * 2**20)
        self._known = read_tensors(model)

    def push(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """As `base.Transport` has it. The old weights cannot be had again: after a failure the engines stay paused until the
        next push, with which a run always begins."""

        def send(engines: Sequence[Control]) -> dict[str, str]:
            missing = set(self._known)
            failed = everywhere(engines, lambda e: e.begin(version))
            for bucket in buckets(weights, self._bytes):
                if failed:
                    return failed
                if wrong := self._unlike(bucket):
                    return {e.url: wrong for e in engines}
                missing -= {name for name, _ in bucket}
                failed = everywhere(engines, lambda e, b=bucket: e.send(b))
            if missing:
                shown = ", ".join(sorted(missing)[:3])
                return {e.url: f"{len(missing)} tensors of the model were not sent, {shown} among them" for e in engines}
            return failed or everywhere(engines, lambda e: e.end(version))

        update(self._engines, send, version)

    def _unlike(self, bucket: Bucket) -> str:
        """What is in the way of sending it: an engine may not survive a tensor of another shape."""
        for name, tensor in bucket:
            expected = self._known.get(name, ("", None))[1]
            if expected != tuple(tensor.shape):
                what = f"has the shape {list(expected)}" if expected is not None else "is none"
                return f"{name} of shape {list(tensor.shape)} was not sent: in the model that the engines run it {what}"
        return ""

    def close(self) -> None:
        """Nothing is held open."""


def buckets(tensors: Iterable[tuple[str, torch.Tensor]], size: int) -> Iterator[Bucket]:
    """All tensors in order, in lists of at most `size` bytes; a larger tensor is a list of its own."""
    held: Bucket = []
    total = 0
    for name, tensor in tensors:
        if held and total + tensor.nbytes > size:
            yield held
            held, total = [], 0
        held.append((name, tensor))
        total += tensor.nbytes
    if held:
        yield held


class _Part:
    Settings = Settings

    def open(self, settings: Settings, engines: Sequence[Control], *, home: Path, model: Path) -> TensorTransport:
        return TensorTransport(settings, engines, model=model)


TRANSPORT = _Part()
