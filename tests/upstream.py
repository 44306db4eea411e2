"""A search server of ours as another one's upstream: it speaks Search-R1's contract over a world's pages, and can be killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from megatron_mmsr1.procs.ports import free_port
from tests.loop_fixtures import ROOT


class Upstream:
    """`settings` are of its `search:` section, e.g. error_rate=0.1. A context manager: entered, it runs."""

    def __init__(self, world: Path, log: Path, *settings: str):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._argv = [sys.executable, "-m", "megatron_mmsr1.cli", "search", "serve", f"corpus={world}", *settings]
        self._argv += ["--port", str(self.port)]
        self._log = log

    def start(self) -> None:
        with self._log.open("ab") as out:
            self.process = subprocess.Popen(self._argv, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/readyz", timeout=1).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise AssertionError(self._log.read_text())

    def asked(self) -> int:
        """Calls that it has answered since it was started, failed ones included."""
        with urllib.request.urlopen(f"{self.url}/v1/stats", timeout=5) as r:
            return sum(json.load(r)["calls"]["retrieve"].values())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Upstream:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
