"""SGLang's own router before several engines (the `router` extra): one URL, and its policies instead of ours."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.procs.supervisor import HOST, Supervisor, answers, free_port, tail

NAME = "the router"
GRACE_S = 3.0


@dataclass(slots=True)
class Router:
    url: str
    supervisor: Supervisor

    def check(self) -> None:
        self.supervisor.check()

    def stop(self) -> None:
        if NAME in self.supervisor.children:
            self.supervisor.stop(NAME)


def require() -> None:
    if importlib.util.find_spec("sglang_router") is None:
        raise UsageError("router=true needs sglang-router: pip install 'megatron-mmsr1[router]'")


def launch(engines: Sequence[str], port: int, log: Path, *, timeout_s: float, wanted: Callable[[], None]) -> Router:
    """A router of `engines`, which may still be starting, that has one to send requests to.

    Raises RunError with the log's end where it ends, or has none within `timeout_s`.
    """
    supervisor = Supervisor(grace_s=GRACE_S)
    argv = [sys.executable, "-m", "sglang_router.launch_router", "--worker-urls", *engines, "--host", HOST, "--port", str(port)]
    argv += [
        "--prometheus-port",
        str(free_port()),
        "--worker-startup-timeout-secs",
        str(round(timeout_s)),
        "--log-level",
        "warn",
    ]
    supervisor.start(NAME, argv, log=log)
    router = Router(f"http://{HOST}:{port}", supervisor)
    until = time.monotonic() + timeout_s
    try:
        while not answers(HOST, port, "/readiness", timeout_s=2.0):
            router.check()
            wanted()
            if time.monotonic() > until:
                raise RunError(f"{NAME} found no engine within {timeout_s:g} s; {log} ends:\n{tail(log)}")
            time.sleep(0.2)
    except BaseException:  # Ctrl-C included: nothing that we started may stay
        router.stop()
        raise
    return router
