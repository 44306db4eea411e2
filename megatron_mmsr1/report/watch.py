"""`mmsr1 watch RUN [RUN ...]`: the report of runs that go on, over HTTP, on this machine alone unless told otherwise.

Two addresses exist: the page and its numbers. Runs are read anew from their files whenever those change: a line that is being
written is left for the next time, and a run that starts again, which cuts its files, is simply read again.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from megatron_mmsr1 import config
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.eval.results import load_all
from megatron_mmsr1.report import build
from megatron_mmsr1.report.curves import Line, page_data
from megatron_mmsr1.report.gather import CONFIG, labels, require_run
from megatron_mmsr1.report.page import policy, script
from megatron_mmsr1.run.logs import read_metrics

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
# What a run writes while it lives: a step, a line of a log, a phase of a rank, rollouts, an evaluation. A directory's time is
# that of the last file put into it: thousands of files on a shared file system are not asked for one by one.
WRITTEN = ("metrics.jsonl", "run.log", "phases", "rollouts", "eval")
PARTS = ("rollouts", "eval")  # what the page shows beside numbers
IDLE_S = 30  # a connection that asks nothing


class Watched:
    """What is told of these runs. Raises UsageError if one of the directories is no run's."""

    def __init__(self, directories: Sequence[Path]) -> None:
        for d in directories:
            require_run(d)
        self.directories = list(directories)
        self.labels = labels(self.directories)
        self._lock = Lock()
        self._read: tuple[str, dict[str, Any]] = ("", {})
        self._page = ("", "")

    def page(self) -> str:
        """The page as it is now; made anew where files have changed."""
        stamp = self._stamp((CONFIG, *WRITTEN))
        with self._lock:
            if self._page[0] != stamp:
                self._page = (stamp, build(self.directories, live=True))
            return self._page[1]

    def told(self) -> dict[str, Any]:
        """{"data", "stamp", "parts", "steps", "of", "ago", "error"}: the numbers (`page_data`), which version they and the
        other parts of the page are of, steps done and to be done, and seconds since the runs last wrote."""
        stamp = self._stamp((CONFIG, "metrics.jsonl", "eval"))
        with self._lock:
            error = ""
            if self._read[0] != stamp:
                try:
                    self._read = (stamp, self._numbers())
                except (RunError, UsageError, OSError, ValueError) as e:  # the page keeps what it shows, and says why
                    error = f"The run's files cannot be read now: {e}"
            newest = max((f[1] for f in self._files(WRITTEN)), default=0.0)
            ago = max(0.0, time.time() - newest / 1e9)
            return {**self._read[1], "stamp": self._read[0], "parts": self._stamp(PARTS), "ago": ago, "error": error}

    def _numbers(self) -> dict[str, Any]:
        metrics = [read_metrics(f) if (f := d / "metrics.jsonl").is_file() else [] for d in self.directories]
        results = [load_all(d / "eval") for d in self.directories]
        lines = [Line(n, [rows], [found]) for n, rows, found in zip(self.labels, metrics, results, strict=True)]
        steps = max((rows[-1]["step"] + 1 for rows in metrics if rows), default=0)
        of = max(config.load(d / CONFIG).train.steps for d in self.directories)
        return {"data": page_data(lines), "steps": steps, "of": of}

    def _files(self, patterns: Sequence[str]) -> list[tuple[str, int, int, int]]:
        """(path, mtime in ns, bytes, inode) of what is there; a file that goes meanwhile is none."""
        found: list[tuple[str, int, int, int]] = []
        for d in self.directories:
            for path in (p for pattern in patterns for p in d.glob(pattern)):
                try:
                    s = path.stat()
                except OSError:
                    continue
                found.append((str(path), s.st_mtime_ns, s.st_size, s.st_ino))
        return found

    def _stamp(self, patterns: Sequence[str]) -> str:
        return f"{hash(tuple(sorted(self._files(patterns)))):x}"


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, watched: Watched, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), partial(Handler, watched))
        except OSError as e:
            raise UsageError(f"cannot listen at {host} port {port} ({e.strerror}): name another --host or --port") from None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_address[1]}/"
        # A name that another site has pointed at this machine is none of these.
        self.names = {shown, "localhost", "127.0.0.1", "[::1]"}
        self.any_name = host in ("0.0.0.0", "::", "")


def server(directories: Sequence[Path], host: str = "127.0.0.1", port: int = 0) -> Server:
    """A server of the page, listening; `serve_forever` answers. UsageError for what is no run, or an address that is taken."""
    return Server(Watched(directories), host, port)


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = IDLE_S
    server_version, sys_version = "mmsr1", ""

    def __init__(self, watched: Watched, *args: Any) -> None:
        self._watched = watched
        super().__init__(*args)

    def do_GET(self) -> None:
        name = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if not self.server.any_name and name not in self.server.names:
            self._answer(421, "text/plain", "this server is asked by another name than its own")
        elif self.path == "/":
            try:
                self._answer(200, "text/html", self._watched.page())
            except (RunError, UsageError, OSError, ValueError) as e:
                self._answer(503, "text/plain", f"the run cannot be read now: {e}. Load this page again")
        elif self.path == "/data":
            self._answer(200, "application/json", json.dumps(self._watched.told()))
        else:
            self._answer(404, "text/plain", "there is the page, and its data; nothing else")

    do_HEAD = do_GET

    def _answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for header, value in HEADERS.items():
            self.send_header(header, value)
        self.send_header("Content-Security-Policy", policy(script(live=True), live=True) + "; frame-ancestors 'none'")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a page that refreshes itself would fill the terminal."""
