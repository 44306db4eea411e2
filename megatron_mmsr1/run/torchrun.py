"""Ranks on this machine: one SPMD program under torchrun, its failure told by the rank that failed first.

On a cluster srun starts `python -m megatron_mmsr1.train` itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import REPORT, RunError, left_by_child
from megatron_mmsr1.procs.supervisor import Supervisor, free_port, tail


def run_ranks(
    supervisor: Supervisor,
    cfg: RunConfig,
    module: str,
    args: Sequence[str],
    log: Path,
    *,
    env: dict[str, str] | None = None,
    poll: Callable[[], None] | None = None,
) -> None:
    """Start `python -m MODULE ARGS` on `train.ranks` ranks and wait for them; `poll` is called meanwhile.

    What the first of them to fail reported is raised here, as its own kind of error; RunError too for ranks that were killed.
    """
    threads = cfg.train.threads_per_rank or max(1, (os.cpu_count() or 1) // cfg.train.ranks)
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(cfg.train.ranks)]
    argv += ["--master-addr", "127.0.0.1", "--master-port", str(free_port()), "-m", module, *args]
    report = log.with_name("failure.json")
    report.unlink(missing_ok=True)
    ours = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", REPORT: str(report.resolve())}
    child = supervisor.start("ranks", argv, log=log, env={**ours, **(env or {})})
    try:
        supervisor.wait("ranks", poll=poll)
    except RunError:
        if child.process.poll() is None:
            raise  # not the ranks: a server ended
        said = left_by_child(report)
        if said is None:
            raise RunError(
                f"the ranks ended with exit code {child.process.returncode} and none said why; one that was killed (for memory "
                f"perhaps) cannot. The same command resumes. The log {log} ends:\n{tail(log, 6)}"
            ) from None
        raise type(said)(f"{said} (the ranks' log: {log})") from None
