"""Ranks on this machine: one SPMD program under torchrun, its failure told by the rank that failed first.

On a cluster srun starts `python -m megatron_mmsr1.train` itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import REPORT, RunError, UsageError, left_by_child
from megatron_mmsr1.procs.child import tail
from megatron_mmsr1.procs.ports import HOST, free_port
from megatron_mmsr1.procs.service import Command, Service


def run_ranks(
    cfg: RunConfig,
    module: str,
    args: Sequence[str],
    log: Path,
    *,
    env: dict[str, str] | None = None,
    poll: Callable[[], None] | None = None,
    on_interrupt: Callable[[], None] | None = None,
) -> None:
    """Start `python -m MODULE ARGS` on `train.ranks` ranks and wait for them; `poll` is called meanwhile,
    `on_interrupt` at the first Ctrl-C, which the ranks are then left to answer; the second one ends them.

    What the first of them to fail reported is raised here, as its own kind of error; RunError too for ranks that were killed.
    """
    threads = cfg.train.threads_per_rank or max(1, (os.cpu_count() or 1) // cfg.train.ranks)
    argv = [sys.executable, "-m", "megatron_mmsr1.procs.torchrun", "--nproc-per-node", str(cfg.train.ranks)]
    argv += ["--master-addr", HOST, "--master-port", str(free_port()), "-m", module, *args]
    report = log.with_name("failure.json")
    report.unlink(missing_ok=True)
    # All ranks are here: what they listen on is for this machine alone (procs/bound_store.py).
    ours = {} if "GLOO_SOCKET_IFNAME" in os.environ else {"GLOO_SOCKET_IFNAME": "lo"}
    ours |= {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", REPORT: str(report.resolve())}
    with Service(Command(name="ranks", argv=argv, log=log, env={**ours, **(env or {})})).start() as ranks:
        try:
            try:
                ranks.wait(poll=poll)
            except KeyboardInterrupt:
                if on_interrupt is None:
                    raise
                on_interrupt()
                ranks.wait(poll=poll)
        except RunError:
            if not ranks.child.ended:
                raise  # not the ranks: a server ended
            raise _failure(ranks, left_by_child(report)) from None


def _failure(ranks: Service, said: UsageError | RunError | None) -> UsageError | RunError:
    """Of ranks that have ended: what one of them said, or what can be told from outside."""
    if said is not None:
        return type(said)(f"{said} (the ranks' log: {ranks.log})")
    why = ranks.child.why() or "One that is killed cannot say why."
    return RunError(
        f"the ranks ended with exit code {ranks.child.returncode} and none said why. {why} The same command resumes. The log "
        f"{ranks.log} ends:\n{tail(ranks.log, 6)}"
    )
