"""A search server beside this process, as a service of ours; and what a running one says of itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.procs import http
from megatron_mmsr1.procs.http import answers
from megatron_mmsr1.procs.ports import HOST
from megatron_mmsr1.procs.service import Command, Service
from megatron_mmsr1.untyped import is_dict

DRAIN_S = 10  # how long the server lets calls in flight end after SIGTERM (search.server)
NAME = "the search server"
# Its products are small: more BLAS threads only take cores from engine and trainer.
THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def command(
    cfg: SearchConfig, *, cache_path: Path | None, log: Path, port: int = 0, host: str = HOST, startup_s: float = 120.0
) -> Command:
    """The server of `cfg`, on a socket that is bound by whoever starts it and inherited; port 0 takes a free one."""
    argv = [sys.executable, "-m", "megatron_mmsr1.search.server.main", "--json", cfg.model_dump_json(), "--host", host]
    argv += ["--cache", str(cache_path)] if cache_path is not None else []
    return Command(
        name=NAME,
        argv=argv,
        log=log,
        env={k: v for k, v in THREADS.items() if k not in os.environ},
        listen=(host, port),
        ready=lambda url: answers(f"{url}/readyz"),
        ready_within_s=startup_s,
        alive=lambda url: answers(f"{url}/healthz", timeout_s=5.0),
        grace_s=DRAIN_S + 5,
    )


def launch(
    cfg: SearchConfig, *, cache_path: Path | None, log: Path, port: int = 0, host: str = HOST, startup_s: float = 120.0
) -> Service:
    """A server that answers at the service's `url`; its output goes to `log`.

    Raises RunError if the port is taken, or with the log's end if the server does not come up within `startup_s` seconds.
    """
    return Service(command(cfg, cache_path=cache_path, log=log, port=port, host=host, startup_s=startup_s)).start()


# What a running search server says of itself: its snapshot and its counts.

TIMEOUT_S = 5.0


def identity(url: str | None) -> dict[str, Any]:
    """{"mode", "id", "backends"} of a search server's snapshot: what goes into checkpoints, dumps, evaluations and reports.
    {} where no server can say it."""
    held = ask(url, "/v1/snapshot")
    return {k: held[k] for k in ("mode", "id", "backends") if k in held}


def ask(url: str | None, path: str) -> dict[str, Any]:
    """A page of the search server's as JSON; {} where there is none."""
    if url is None:
        return {}
    try:
        answer = http.get(url.rstrip("/") + path, timeout_s=TIMEOUT_S)
        said = answer.json() if answer.ok else None
    except http.Unanswered:  # a server of another make, or one that is down: nothing to tell
        return {}
    return said if is_dict(said) else {}
