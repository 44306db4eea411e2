"""Start a search server beside this process, and be sure that it ends with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.procs.supervisor import answers
from megatron_mmsr1.search.server import DRAIN_S, bind


@dataclass(slots=True)
class SearchProcess:
    """A server that runs, at `url`. A context manager: leaving it stops the server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """RunError with the log's last lines if the server has ended."""
        if self.process.poll() is not None:
            raise RunError(f"the search server ended with code {self.process.returncode}; {self.log} ends:\n{_tail(self.log)}")

    def stop(self) -> None:
        """Drain, then end the whole process group; harmless if it has ended already."""
        if self.process.poll() is None:
            self._signal(signal.SIGTERM)
            try:
                self.process.wait(DRAIN_S + 5)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, sig: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, sig)

    def __enter__(self) -> SearchProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def launch(
    cfg: SearchConfig, *, cache_path: Path | None, log: Path, port: int = 0, host: str = "127.0.0.1", startup_s: float = 120.0
) -> SearchProcess:
    """A server in its own process group, answering; its output goes to `log`.

    Raises RunError if the port is taken, or with the log's end if the server does not come up within `startup_s` seconds.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # Bound here and inherited: the port is known, and ours, before the child exists.
    with bind(host, port) as sock, log.open("ab") as out:
        port = sock.getsockname()[1]
        command = [sys.executable, "-m", "megatron_mmsr1.search.server", "--json", cfg.model_dump_json(), "--host", host]
        command += ["--fd", str(sock.fileno()), "--parent", str(os.getpid())]
        command += ["--cache", str(cache_path)] if cache_path is not None else []
        command += ["--watch-thread"] if threading.current_thread() is threading.main_thread() else []
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(sock.fileno(),),
            # Its products are small: more BLAS threads only take cores from engine and trainer.
            env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **os.environ},
        )
    server = SearchProcess(f"http://{host}:{port}", process, log)
    deadline = time.monotonic() + startup_s
    try:
        while not answers(host, port, "/readyz"):
            server.check()
            if time.monotonic() > deadline:
                raise RunError(f"the search server was not ready within {startup_s:g} s; {log} ends:\n{_tail(log)}")
            time.sleep(0.05)
    except BaseException:  # Ctrl-C included: nothing that we started may stay
        server.stop()
        raise
    return server


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
