"""The processes that look at a job's nodes together: the tasks of one `srun` (or of torchrun), or this process alone."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from megatron_mmsr1.cluster import rendezvous
from megatron_mmsr1.cluster.agent import name
from megatron_mmsr1.errors import RunError

# Of the environment: a process that a task starts is no task.
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME")
JOIN_S = 120.0
PATIENCE_S = 900.0  # for another task's check, which may start an engine


class Tasks:
    """This task's place among `world`. `nodes`: the name of each task's node, in the tasks' order. `local`: its number there.

    A `label` is used once, by all who take part alike. What waits raises RunError, which names the tasks that did not come.
    """

    def __init__(self, rank: int, world: int, node: str, store: dist.Store, *, local: int = 0) -> None:
        self.rank, self.world, self.node, self.local, self.store = rank, world, node, local, store
        self.nodes: list[str] = self.gather("node", node)

    @property
    def firsts(self) -> list[int]:
        """The first task of each node."""
        return [r for r in range(self.world) if self.nodes.index(self.nodes[r]) == r]

    @property
    def here(self) -> int:
        """How many tasks this node has."""
        return self.nodes.count(self.node)

    def gather(self, label: str, value: Any, among: Sequence[int] | None = None, within_s: float = PATIENCE_S) -> list[Any]:
        """What each of `among` (default: all) passed, JSON-ready, in their order."""
        ranks = range(self.world) if among is None else among
        self.store.set(f"{label}/{self.rank}", json.dumps(value))
        keys = [f"{label}/{r}" for r in ranks]
        try:
            self.store.wait(keys, timedelta(seconds=within_s))
            return [json.loads(self.store.get(key)) for key in keys]
        except RuntimeError as e:  # torch's errors of a store are its children
            missing = [r for r, key in zip(ranks, keys, strict=True) if not self._has(key)]
            raise RunError(f"tasks {missing} did not come to {label!r} within {within_s:g} s ({_first_line(e)})") from None

    def leave(self) -> None:
        """The last that a task does here. The first one holds the store, and goes when all others have gone."""
        if self.rank:
            self.store.set(f"left/{self.rank}", "true")
        else:
            self.gather("left", True)

    def _has(self, key: str) -> bool:
        try:
            return self.store.check([key])
        except RuntimeError:  # the first task, which holds the store, is gone
            return False


def join() -> Tasks:
    """This process's place, from what srun or torchrun says. Raises RunError where the others do not come, UsageError for an
    environment that is not whole."""
    rendezvous.adopt()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Tasks(0, 1, name(), dist.HashStore())
    from torch.distributed.rendezvous import rendezvous as meet

    at = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, rank, _ = next(meet("env://", timeout=timedelta(seconds=JOIN_S)))
    except (RuntimeError, ValueError, OSError) as e:
        raise RunError(
            f"task {os.environ.get('RANK')} of {world} on {name()} did not meet the others at {at}: {_first_line(e)}"
        ) from None
    return Tasks(rank, world, name(), store, local=int(os.environ.get("LOCAL_RANK", "0")))


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]
