"""A directory in which a page's commands are run as in a checkout: what the repository holds, by links, and nothing built."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from doc_commands import ROOT

URL = re.compile(r"http://127\.0\.0\.1:\d+")


class Place:
    def __init__(self, home: Path) -> None:
        self.home = home
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
        for name in {n.partition("/")[0] for n in tracked.split("\0") if n}:
            (home / name).symlink_to(ROOT / name)
        (home / "out").mkdir()
        # The environment of these tests is the one that the commands use, and that scripts/env.sh finds ready.
        found = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.env = os.environ | {"PATH": found, "PYTHONPATH": str(ROOT), "MMSR1_VENV": sys.prefix, "BROWSER": "true"}

    def run(self, text: str, added: str, says: str) -> subprocess.CompletedProcess[str]:
        """The command to its end, which must be a success that says this on stdout."""
        words = [*shlex.split(text), *shlex.split(added)]
        done = subprocess.run(words, cwd=self.home, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-3000:]}"
        assert says in done.stdout, f"{shlex.join(words)}\n{done.stdout[-3000:]}"
        return done

    @contextmanager
    def serving(self, text: str, added: str, says: str) -> Iterator[str]:
        """The URL at which the command says that it serves; at the end Ctrl-C, which it must answer with 0."""
        words = [*shlex.split(text), *shlex.split(added)]
        with (self.home / "out" / "stderr").open("w+") as err:
            server = subprocess.Popen(
                words, cwd=self.home, env=self.env, stdout=subprocess.PIPE, stderr=err, text=True, start_new_session=True
            )
            try:
                assert server.stdout is not None
                lines = ""
                for line in server.stdout:
                    lines += line
                    if says in lines and URL.search(lines):
                        break
                found = URL.search(lines)
                assert found and says in lines, f"{shlex.join(words)}\n{lines}\n{Path(err.name).read_text()[-3000:]}"
                yield found[0]
                server.send_signal(signal.SIGINT)
                server.stdout.read()
                assert server.wait(60) == 0, Path(err.name).read_text()[-3000:]
            finally:
                if server.poll() is None:
                    server.terminate()
                    server.wait(60)
