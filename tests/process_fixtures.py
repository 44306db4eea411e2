"""Small real processes for the tests of what starts, watches and ends processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_mmsr1.procs import http
from megatron_mmsr1.procs.service import Command

# A family of three: a shell, a grandchild in its group, and one in a session of its own (as torchrun's workers are).
FAMILY = "sleep 300 & echo $! >{d}/a; setsid sleep 300 & echo $! >{d}/b; echo $$ >{d}/main; wait"

# Answers 200 on every path; 503 while the file `down` is there, nothing while `hung` is; with `broken` it ends at once.
SERVER = """
import sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
here = Path(sys.argv[2])
if (here / "broken").exists():
    sys.exit("it does not start")
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        while (here / "hung").exists():
            time.sleep(0.02)
        self.send_response(503 if (here / "down").exists() else 200)
        self.end_headers()
    def log_message(self, format, *args):
        pass
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def command(script: str, log: Path, **options: Any) -> Command:
    """A shell's script as a command named "it"."""
    return Command(**{"name": "it", "argv": ["bash", "-c", script], "log": log} | options)


def server(directory: Path, port: int, **options: Any) -> Command:
    """An HTTP server that the files `down`, `hung` and `broken` in `directory` rule."""
    settings: dict[str, Any] = {
        "name": "it",
        "argv": [sys.executable, "-c", SERVER, str(port), str(directory)],
        "log": directory / "server.log",
        "url": f"http://127.0.0.1:{port}",
        "ready": http.answers,
        "grace_s": 1.0,
    }
    return Command(**settings | options)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must come; the bound only ends a broken test."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def family(d: Path) -> list[int]:
    """The pids of FAMILY, once it runs."""
    until(lambda: all((d / n).is_file() and (d / n).read_text().strip() for n in ("a", "b", "main")))
    return [int((d / n).read_text()) for n in ("a", "b", "main")]
