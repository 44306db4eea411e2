"""SGLang's own router before several engines (the `router` extra): one URL, and its policies instead of ours."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.procs.http import answers
from megatron_mmsr1.procs.ports import HOST, free_port
from megatron_mmsr1.procs.service import Command

NAME = "the router"


def require() -> None:
    """Raises UsageError where it is not installed."""
    if importlib.util.find_spec("sglang_router") is None:
        raise UsageError("router=true needs sglang-router: pip install 'megatron-mmsr1[router]'")


def command(engines: Sequence[str], log: Path, *, timeout_s: float) -> Command:
    """A router of `engines`, which may still be starting; ready once it has one to send requests to."""
    port = free_port()
    argv = [sys.executable, "-m", "sglang_router.launch_router", "--worker-urls", *engines, "--host", HOST, "--port", str(port)]
    argv += ["--prometheus-port", str(free_port()), "--worker-startup-timeout-secs", str(round(timeout_s))]
    return Command(
        name=NAME,
        argv=[*argv, "--log-level", "warn"],
        log=log,
        url=f"http://{HOST}:{port}",
        ready=lambda url: answers(f"{url}/readiness", timeout_s=2.0),
        ready_within_s=timeout_s,
        ready_setting="engine.startup_timeout_s",
        alive=lambda url: answers(f"{url}/liveness", timeout_s=5.0),
        grace_s=3.0,
    )
