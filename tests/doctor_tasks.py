"""Tasks of several nodes as threads of this process, over one store: what a check says on each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_mmsr1.config import RunConfig, parse
from megatron_mmsr1.doctor.check import Finding, Place
from megatron_mmsr1.doctor.tasks import Tasks


def config(output: Path, **sections: Any) -> RunConfig:
    return parse({"model": {"path": "models/none"}, "output": str(output), **sections})


def together[T](act: Callable[[Tasks], T], nodes: Sequence[str] = ("n1", "n2")) -> list[T]:
    """`act` on a task of each of `nodes`, all at once; what each returned."""
    store = dist.HashStore()
    local = [list(nodes[:i]).count(n) for i, n in enumerate(nodes)]

    def one(rank: int) -> T:
        return act(Tasks(rank, len(nodes), nodes[rank], store, local=local[rank]))

    with ThreadPoolExecutor(len(nodes)) as pool:
        return list(pool.map(one, range(len(nodes))))


def alone(run: Callable[[Place], list[Finding]], cfg: RunConfig | None = None, *, asked: bool = False) -> list[Finding]:
    """A check on one machine."""
    return run(Place(Tasks(0, 1, "here", dist.HashStore()), cfg, asked))


def by_name(findings: Sequence[Finding]) -> dict[str, Finding]:
    return {f.what: f for f in findings}
