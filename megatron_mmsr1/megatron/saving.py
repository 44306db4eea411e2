"""A training checkpoint on its way to the disk: taken at once, written by a thread of each rank, put in place by all of them.

The threads make no collective call and touch nothing that training changes, so that steps may go on meanwhile. What they write
has a temporary name until `finish`; a kill before that leaves the checkpoint before, and a hidden directory.
"""

# pyright: standard
# megatron.core has no types.

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.filesystem import SerializationFormat, _write_item

from megatron_mmsr1.checkpoints import manifest
from megatron_mmsr1.checkpoints.manifest import LATEST
from megatron_mmsr1.data import files
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.megatron import platform
from megatron_mmsr1.megatron.parallel import Parallel
from megatron_mmsr1.procs import patches

EXTRA = "extra.pt"
SHARD = ".distcp"  # how the names of megatron-core's shards end
ALIGN = 64  # bytes between the beginnings of two tensors are a multiple of this


class NotWritten(RunError):
    """A checkpoint that the disk did not take. The one before is as it was, and nothing is left of this one."""


@dataclass(frozen=True, slots=True)
class Written:
    """`seconds`: of the slowest rank's thread. `bytes`: of all files."""

    directory: Path
    bytes: int
    seconds: float


class HostMemory:
    """Where tensors wait for the disk: one block of host memory, kept for the next checkpoint, page-locked where there is a
    GPU. The tensors that it gave out last are overwritten by the next call."""

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)

    def copies(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Each with a storage of its own, as torch.save writes a tensor's whole storage."""
        starts, size = list[int](), 0
        for t in tensors:
            starts.append(size)
            size += -(-t.nbytes // ALIGN) * ALIGN
        if self._block.numel() < size:
            self._block = torch.empty(0, dtype=torch.uint8)  # given back first
            self._block = torch.empty(size, dtype=torch.uint8, pin_memory=platform.has_cuda())
        block, out = self._block.numpy(), list[torch.Tensor]()
        for t, at in zip(tensors, starts, strict=True):
            place = torch.from_numpy(block[at : at + t.nbytes]).view(t.dtype).view(t.shape)
            out.append(place.copy_(t, non_blocking=True))
        platform.synchronize()
        return out


class Save:
    """Collective: to make one, and each method. What is saved is what `state` holds when it is made.

    `state`: megatron-core's sharded state; `kept`: plain values for extra.pt (rank 0's count); `beside` is called on every rank
    with the directory that is being written, to add files of its own. `memory`: None to write from the tensors themselves, in
    which case nothing may change them until `finish`. Raises NotWritten, on every rank, where there is no room.
    """

    def __init__(
        self,
        p: Parallel,
        directory: Path,
        state: dict[str, Any],
        kept: dict[str, Any],
        *,
        layout: list[int],
        step: int,
        beside: Callable[[Path], None] | None,
        memory: HostMemory | None,
    ) -> None:
        self.parallel, self.directory, self.step, self.layout = p, directory, step, layout
        self.part = files.part_of(directory)
        self._digests: dict[str, str] = {}  # of the files that this rank has written
        self._results: list[Any] = []  # where in its shards each tensor is
        self._error: Exception | None = None
        self._seconds = 0.0
        with self._together():
            if p.rank == 0:
                files.fresh_directory(directory)
        self._writer, self._metadata = _planned(state, self.part)
        buckets = self._writer.write_buckets or []
        tensors = [t for _, _, (_, held) in buckets for _, t in held]
        needed = int(p.sum([float(sum(t.nbytes for t in tensors))])[0])
        with self._together():
            if p.rank == 0:
                _require_room(self.part, needed)
            if beside is not None:
                beside(self.part)
            if memory is not None:
                copies = iter(memory.copies(tensors))
                buckets = [(f, k, (texts, [(item, next(copies)) for item, _ in held])) for f, k, (texts, held) in buckets]
        packed = io.BytesIO()
        torch.save(kept, packed)
        self._thread = threading.Thread(target=self._write, args=(buckets, packed.getvalue()), name="checkpoint", daemon=True)
        self._thread.start()

    def done(self) -> bool:
        """Whether every rank has written its part, or failed to."""
        return not self.parallel.max([float(self._thread.is_alive())])[0]

    def finish(self) -> Written:
        """Wait for the threads, put the checkpoint in its place and make it the latest. NotWritten, on every rank, if a rank's
        disk did not take its part."""
        p = self.parallel
        self._thread.join()
        seconds = p.max([self._seconds])[0]
        with self._together():
            if self._error is not None:
                raise self._error
        found: list[Any] = [None] * p.world
        dist.all_gather_object(found, (self._results, self._digests), group=p.objects)
        size = 0
        with self._together():
            if p.rank == 0:
                size = self._complete([results for results, _ in found], {n: d for _, part in found for n, d in part.items()})
        return Written(self.directory, int(p.sum([float(size)])[0]), seconds)

    # -------------------------------------------------------------------------------------------------------- helpers
    def _write(self, buckets: list[Any], extra: bytes) -> None:
        """The thread."""
        started = time.monotonic()
        try:
            for file, key, (texts, tensors) in buckets:
                self._write_shard(Path(file), key, [*texts, *tensors])
            if self.parallel.rank == 0:
                files.write_bytes(self.part / EXTRA, extra)
                others = [f.name for f in self.part.iterdir() if f.suffix != SHARD and not f.name.startswith(".")]
                self._digests |= manifest.checksums(self.part, others)
        except Exception as e:  # raised by `finish`, on every rank
            self._error = e
        self._seconds = time.monotonic() - started

    def _write_shard(self, file: Path, key: str, items: list[Any]) -> None:
        try:
            with file.open("wb", buffering=0) as raw:
                stream = _Hashed(raw)
                for item, data in items:
                    value = data.cpu() if isinstance(data, torch.Tensor) else data
                    how = self._writer.transforms, stream, value, item, key
                    self._results.append(_write_item(*how, serialization_format=SerializationFormat.TORCH_SAVE))
                    if stream.error is not None:
                        raise stream.error
                os.fsync(raw.fileno())
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(file)) from e  # a write's error does not name its file
        self._digests[file.name] = stream.digest.hexdigest()

    def _complete(self, results: list[Any], digests: dict[str, str]) -> int:
        """On rank 0: index, manifest, and the exchange; returns the bytes."""
        self._writer.finish(self._metadata, results)
        save_config(CheckpointingConfig("torch_dist", 1), str(self.part))
        rest = [f.name for f in self.part.iterdir() if f.name not in digests]
        held = manifest.of_directory(
            self.part, digests | manifest.checksums(self.part, rest), layout=self.layout, step=self.step
        )
        held.write(self.part)
        files.replace_directory(self.part, self.directory)
        files.write_text(self.directory.parent / LATEST, self.directory.name)
        return held.bytes

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Collective at its end. What the block raises on one rank is raised on all: NotWritten for what the disk did, when
        nothing is left there; RunError for the rest."""
        error: Exception | None = None
        try:
            yield
        except Exception as e:
            error = e
        what = f"{error}" if isinstance(error, OSError) else f"{error!r}"
        said = (f"rank {self.parallel.rank}: {what}" if error else "", isinstance(error, OSError))
        told: list[tuple[str, bool]] = [said] * self.parallel.world
        dist.all_gather_object(told, said, group=self.parallel.objects)
        problems = [t for t in told if t[0]]
        if not problems:
            return
        if self.parallel.rank == 0:
            shutil.rmtree(self.part, ignore_errors=True)
        text = f"{self.directory} was not written: {'; '.join(t for t, _ in problems)}"
        if all(of_disk for _, of_disk in problems):
            raise NotWritten(text) from error
        raise RunError(text) from error


class _Hashed(io.RawIOBase):
    """A file that is written through, with the SHA-256 of what was meant. `error`: the first that the system gave, after which
    nothing is written. It is not raised through torch's writer, nor kept with its traceback: that holds a view of a buffer
    which torch frees, and the next garbage collection crashes."""

    def __init__(self, raw: io.FileIO) -> None:
        self.raw, self.size, self.digest = raw, 0, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        self.digest.update(left)
        self.size += len(left)
        try:
            while left and self.error is None:
                left = left[self.raw.write(left) :]
        except OSError as e:
            self.error = OSError(e.errno, e.strerror)
        return len(data)

    def tell(self) -> int:
        return self.size


class _Strategy(TorchDistSaveShardedStrategy):
    """Plans, and hands over what it has planned in the place of a request to write it."""

    def _get_save_and_finalize_callbacks(self, writer: Any, save_state_dict_ret: Any, async_strategy: Any) -> Any:
        return SimpleNamespace(writer=writer, metadata=save_state_dict_ret[1], finalize_fns=[])


def _planned(state: dict[str, Any], part: Path) -> tuple[Any, Any]:
    """Collective. megatron-core's writer, which knows what this rank has to write, and on rank 0 the index of all. What several
    data-parallel ranks hold alike is written by one of them, and they share the work."""
    # megatron-core would start a server process a rank for this queue, and tells its plan to the override above alone.
    patches.check("checkpoint-queue")
    filesystem_async._results_queue = queue.Queue()
    strategy: Any = _Strategy()
    replicas: Any = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if replicas.size() > 1:
        strategy = FullyParallelSaveStrategyWrapper(strategy, replicas)
    planned: Any = dist_checkpointing.save(state, str(part), strategy, async_sharded_save=True, async_strategy="mcore")
    return planned.writer, planned.metadata


def _require_room(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        said = f"{os.strerror(errno.ENOSPC)}: {needed / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB are free"
        raise OSError(errno.ENOSPC, said, str(directory))
