"""The weights of Qwen2-VL-2B's shape from the trainer to a process of ours (receiver.py), in GB/s: a whole update as
sync/update.py makes it, in the buckets of the tensors transport, over every way that is there.

`shared memory` is what a run does: the export comes to the CPU. `cuda ipc` leaves it on the GPU and sends handles.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu import actor as actors
from benchmarks.gpu import shapes
from benchmarks.gpu.job import Job
from benchmarks.gpu.receiver import Receiver, digest, fingerprint
from megatron_mmsr1.errors import RunError


def run(job: Job) -> None:
    actors.prepare()
    with tempfile.TemporaryDirectory() as home:
        shapes.write(shapes.NAMES[0], Path(home), tiny=job.tiny)
        actor = actors.make(Path(home), tokens=64, dtype="bfloat16", random_weights=True)
    expected = digest({name: fingerprint(t) for name, t in _weights(actor, cpu=True)})
    ways = {"shared memory": True} | ({"cuda ipc": False} if job.device == "cuda" else {})
    for way, cpu in ways.items():
        started = time.perf_counter()
        sizes = [t.nbytes for _, t in _weights(actor, cpu=cpu)]
        job.row(way=way, what="export alone", seconds=time.perf_counter() - started, tensors=len(sizes), bytes=sum(sizes))
        receiver = Receiver(job.device)
        try:
            for version, what in ((1, "first update"), (2, "second update")):  # the first allocates
                seconds = _update(receiver, _weights(actor, cpu=cpu), version)
                row = {"way": way, "what": what, "seconds": seconds, "gb_per_s": sum(sizes) / seconds / 1e9}
                job.row(**row, arrived=receiver.checksum() == expected)
                if receiver.checksum() != expected:
                    job.fault(f"{way}: what arrived is not what was sent")
        except RunError as e:
            if way == "shared memory":  # what every run needs; the other is a possibility
                raise
            job.skipped(f"{way}: {e}")
        finally:
            receiver.close()


def _weights(actor: Any, *, cpu: bool) -> Iterable[tuple[str, Any]]:
    """As `MegatronActor.weights`, on the CPU or where they are."""
    found = actor.model.bridge.export_hf_weights(actor.model.chunks, cpu=cpu, show_progress=False)
    # Without a checkpoint that names its tensors, the bridge writes the tied output layer a second time.
    return ((name, t) for name, t in found if name != "lm_head.weight")


def _update(receiver: Receiver, weights: Iterable[tuple[str, Any]], version: int) -> float:
    """Seconds of one update through `sync.update`; raises RunError unless the receiver then has this version."""
    from megatron_mmsr1.sync.transports.tensors import Settings, buckets
    from megatron_mmsr1.sync.update import everywhere, update

    size = int(Settings().bucket_mb * 2**20)

    def change(engines: Any) -> dict[str, str]:
        for bucket in buckets(weights, size):
            failed = everywhere(engines, lambda e, b=bucket: e.send(b))
            if failed:
                return failed
        return everywhere(engines, lambda e: e.end(version))

    engines: Any = [receiver]
    started = time.perf_counter()
    update(engines, change, version)
    return time.perf_counter() - started
