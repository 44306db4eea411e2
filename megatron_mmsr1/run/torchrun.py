"""Ranks under torchrun, on the machines of a plan: one SPMD program, its failure told by the rank that failed first.

srun may start `python -m megatron_mmsr1.train` itself instead (`cluster.rendezvous`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from megatron_mmsr1.cluster.machines import Machines
from megatron_mmsr1.cluster.placement import TRAINER
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import REPORT, Interrupted, RunError, UsageError, left_by_child
from megatron_mmsr1.procs.child import tail
from megatron_mmsr1.procs.machine import Process
from megatron_mmsr1.procs.service import Command, Service, wait_all


class RanksDied(Interrupted):
    """Ranks were killed, or hang: they may be started again beside the same servers."""


def run_ranks(
    cfg: RunConfig,
    module: str,
    args: Sequence[str],
    log: Path,
    *,
    machines: Machines | None = None,
    env: dict[str, str] | None = None,
    poll: Callable[[], None] | None = None,
    watch: Callable[[Sequence[Process]], None] | None = None,
    on_interrupt: Callable[[], None] | None = None,
) -> None:
    """Start `python -m MODULE ARGS` on `train.ranks` ranks and wait for them; `poll` is called meanwhile, and `watch` with the
    processes above them. `on_interrupt` is called at the first Ctrl-C, which the ranks are then left to answer; the second one
    ends them. `machines`: default, all ranks are on this one. `log`: of this machine; other nodes' are beside it.

    What the first of them to fail reported is raised here, as its own kind of error; RanksDied for ranks that were killed.
    """
    report = log.with_name("failure.json")
    report.unlink(missing_ok=True)
    commands = _commands(cfg, machines, module, args, log, {REPORT: str(report.resolve()), **(env or {})})

    def both() -> None:
        if poll is not None:
            poll()
        if watch is not None:
            watch([s.process for s in ranks])

    with ExitStack() as stack:
        ranks = [stack.enter_context(Service(c).start()) for c in commands]
        try:
            try:
                wait_all(ranks, poll=both)
            except KeyboardInterrupt:
                if on_interrupt is None:
                    raise
                on_interrupt()
                wait_all(ranks, poll=both)
        except RunError:
            failed = next((s for s in ranks if s.ended_badly), None)
            if failed is None:
                raise  # not the ranks: a server ended, or one hangs
            raise _failure(failed, left_by_child(report)) from None


def _commands(
    cfg: RunConfig, machines: Machines | None, module: str, args: Sequence[str], log: Path, env: dict[str, str]
) -> list[Command]:
    """One a node that has ranks."""
    found = machines or Machines.alone(cfg.train.ranks)
    firsts = {p.node: p for p in reversed(found.plan.of(TRAINER))}
    per_node = cfg.train.ranks // len(firsts)
    threads = cfg.train.threads_per_rank or max(1, (os.cpu_count() or 1) // per_node)
    env = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", **env}
    if found.head is None and "GLOO_SOCKET_IFNAME" not in os.environ:
        env["GLOO_SOCKET_IFNAME"] = "lo"  # what they listen on is for this machine alone (procs/bound_store.py)
    master = found.of(firsts[min(firsts)])
    rendezvous = ["--master-addr", master.address, "--master-port", str(master.free_port())]
    commands = []
    for number, node in enumerate(sorted(firsts)):
        machine = found.of(firsts[node])
        argv = [sys.executable, "-m", "megatron_mmsr1.procs.torchrun", "--nproc-per-node", str(per_node)]
        argv += ["--nnodes", str(len(firsts)), "--node-rank", str(number), *rendezvous, "-m", module, *args]
        own = log if found.head is None else log.with_name(found.log_name("ranks", firsts[node], alone=True))
        devices = {"CUDA_VISIBLE_DEVICES": ",".join(str(g) for p in found.plan.of(TRAINER) if p.node == node for g in p.gpus)}
        name = f"ranks on {machine.name}" if machine.name else "ranks"
        on_gpu = bool(firsts[node].gpus)
        commands.append(Command(name=name, argv=argv, log=own, env={**env, **(devices if on_gpu else {})}, machine=machine))
    return commands


def _failure(ranks: Service, said: UsageError | RunError | None) -> UsageError | RunError:
    """Of ranks that have ended: what one of them said, or what can be told from outside."""
    if said is not None:
        kind = RanksDied if type(said) is Interrupted else type(said)
        return kind(f"{said} (the ranks' log: {ranks.log})")
    why = ranks.process.why() or "One that is killed cannot say why."
    return RanksDied(
        f"the {ranks.name} ended with exit code {ranks.process.returncode} and none said why. {why} The same command resumes. "
        f"The log {ranks.log} ends:\n{tail(ranks.log, 6)}"
    )
