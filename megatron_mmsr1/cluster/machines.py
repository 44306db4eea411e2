"""The machines of a plan: this one alone, or the nodes of a job, whose supervisors have joined."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from megatron_mmsr1.cluster.head import Head
from megatron_mmsr1.cluster.nodes import Node, local_gpus, of_job
from megatron_mmsr1.cluster.placement import TRAINER, Place, Plan, nodes_wanted, plan
from megatron_mmsr1.cluster.wire import HEAD, head_address, token
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.procs.machine import HERE, Here, Machine


@dataclass(frozen=True, slots=True)
class Machines:
    """`plan` and where its places are. `check` raises RunError once a node is lost."""

    plan: Plan
    head: Head | None = None
    here: Machine = field(default=HERE)

    @classmethod
    def alone(cls, ranks: int) -> Machines:
        """Ranks on this machine and nothing else; which devices they take is left to them."""
        return cls(Plan((Node("this machine", HERE.address),), tuple(Place(TRAINER, i, 0) for i in range(ranks))))

    def of(self, place: Place) -> Machine:
        """By the role's own step where there is one, else by any supervisor of the node; the first node's rest is here."""
        if self.head is None:
            return self.here
        name = self.plan.node(place).name
        if own := self.head.nodes.get((place.role, name)):
            return own
        if place.node == 0:
            return self.here
        return next(n for (_, node), n in sorted(self.head.nodes.items()) if node == name)

    def check(self) -> None:
        if self.head is not None:
            self.head.check()

    def before(self, place: Place) -> int:
        """How many of its role its node has before it."""
        return sum(p.node == place.node and p.index < place.index for p in self.plan.of(place.role))

    def log_name(self, role: str, place: Place, *, alone: bool) -> str:
        """`engine.log` on one machine; `engine-1.n2.log` among others and on nodes, `.r3` in a job's third restart."""
        if self.head is None:
            return f"{role}.log" if alone else f"{role}-{place.index}.log"
        restart = os.environ.get("SLURM_RESTART_COUNT", "0")
        life = f".r{restart}" if restart != "0" else ""
        return f"{role}-{place.index}.{self.plan.node(place).name}{life}.log"


@contextmanager
def machines(cfg: RunConfig, say: Callable[[str], None], *, trains: bool = True) -> Generator[Machines]:
    """What the config's placement needs, until the block ends; then everything on other nodes ends too. `trains`: as `plan` has
    it.

    Raises UsageError for a placement that does not fit, RunError if nodes do not join in time.
    """
    where = head_address()
    if where is None:
        yield Machines(_alone(cfg, trains))
        return
    found = plan(cfg, of_job(), trains=trains)
    steps = [(name, [n.name for n in nodes]) for name, nodes in found.steps]
    with Head(*where, token()) as head:
        say(f"waiting for the supervisors of {', '.join(f'{name}: {len(nodes)} nodes' for name, nodes in steps)} ...")
        head.wait_for(steps, cfg.placement.join_timeout_s)
        say("all nodes have joined")
        yield Machines(found, head, Here(found.nodes[0].address))


def _alone(cfg: RunConfig, trains: bool) -> Plan:
    if (wanted := nodes_wanted(cfg)) > 1:
        raise UsageError(
            f"placement wants {wanted} nodes and this is one: submit the run (mmsr1 slurm submit CONFIG), or start "
            f"`mmsr1 node` on each with {HEAD} set (docs/slurm.md)"
        )
    return plan(cfg, [Node("this machine", HERE.address, local_gpus())], trains=trains)
