"""The contract of a weight transport (`sync/transports/base.py`): run these on your own.

`engines` are controls of one or more real engines; `first` and `second` are checkpoints of their model (one safetensors file
each) with different weights. Each function raises AssertionError with the broken rule.
"""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.rollout.engines.base import Control
from megatron_mmsr1.sync.transports.base import Transport, TransportPart

if TYPE_CHECKING:
    import torch

_versions = itertools.count(1000)


@dataclass(frozen=True)
class TransportUnderTest:
    """`settings`: for parts far smaller than the checkpoints, or nothing tells a stream from a heap."""

    part: TransportPart
    settings: Section
    engines: Sequence[Control]
    home: Path
    first: Path
    second: Path

    def open(self) -> Transport:
        self.home.mkdir(parents=True, exist_ok=True)
        return self.part.open(self.settings, self.engines, home=self.home, model=self.first)


def tensors_of(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(checkpoint / "model.safetensors", "pt") as held:
        for name in sorted(held.keys()):
            yield name, held.get_tensor(name)


def a_push_is_as_good_as_a_load(t: TransportUnderTest) -> None:
    for e in t.engines:
        e.load(t.second, next(_versions))
    expected = [e.checksum() for e in t.engines]
    with_first = t.open()
    with_first.push(tensors_of(t.first), next(_versions))
    assert all(a != e.checksum() or not a for a, e in zip(expected, t.engines, strict=True)), "other weights, another checksum"
    version = next(_versions)
    with_first.push(tensors_of(t.second), version)
    with_first.close()
    assert [e.version() for e in t.engines] == [version] * len(t.engines), (
        "every engine answers with the version that was pushed"
    )
    assert [e.checksum() for e in t.engines] == expected


def nobody_holds_the_whole_model(t: TransportUnderTest) -> None:
    """Tensors are let go while later ones come."""
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def stream() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal most
        for name, tensor in tensors_of(t.first):
            alive.append(weakref.ref(tensor))
            yield name, tensor
            del tensor
            gc.collect(0)
            most = max(most, sum(r() is not None for r in alive))

    transport = t.open()
    transport.push(stream(), next(_versions))
    transport.close()
    assert most < len(alive), f"all {most} tensors were held at once"


def a_stream_that_breaks_is_no_publication(t: TransportUnderTest) -> None:
    """A tensor too few. The engines must not serve such weights: each is back at the version before, or paused."""
    transport = t.open()
    before = next(_versions)
    transport.push(tensors_of(t.first), before)
    sums = [e.checksum() for e in t.engines]
    broken = next(_versions)
    try:
        transport.push(itertools.islice(tensors_of(t.second), 3), broken)
    except RunError:
        pass
    else:
        raise AssertionError("weights that lack tensors were published")
    for e, good in zip(t.engines, sums, strict=True):
        assert e.served().version != broken, "the engine answers with a version that never came whole"
        if e.checksum() != good:
            assert not _samples(e), "an engine whose weights are unknown samples"
    after = next(_versions)
    transport.push(tensors_of(t.first), after)
    transport.close()
    assert [e.version() for e in t.engines] == [after] * len(t.engines), "the next whole push must make the engines usable"
    assert [e.checksum() for e in t.engines] == sums


def _samples(engine: Control) -> bool:
    """Whether a token comes within two seconds."""
    import threading

    done = threading.Event()
    threading.Thread(target=lambda: (engine.version(), done.set()), daemon=True).start()
    return done.wait(2.0)


CONTRACT = (a_push_is_as_good_as_a_load, nobody_holds_the_whole_model, a_stream_that_breaks_is_no_publication)
