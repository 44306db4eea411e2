"""By which command, at which commit, a run was started: a line of RUN/starts.jsonl each time."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

FILE = "starts.jsonl"
ROOT = Path(__file__).parent.parent.parent


def note(out: Path) -> None:
    row = {"at": time.strftime("%Y-%m-%d %H:%M:%S"), "command": shlex.join(["mmsr1", *sys.argv[1:]]), "commit": commit()}
    with (out / FILE).open("a") as f:
        f.write(json.dumps(row) + "\n")


def read(out: Path) -> list[dict[str, str]]:
    """Oldest first; [] where none was noted. A line torn by a kill is left out."""
    file = out / FILE
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def commit(root: Path = ROOT) -> str:
    """Of the checkout that this package lies in, with "+changes" where tracked files differ from it; "" outside of one."""
    if not (root / ".git").exists():
        return ""
    head = git(root, "rev-parse", "HEAD")
    return head + ("+changes" if head and git(root, "status", "--porcelain", "--untracked-files=no") else "")


def git(root: Path, *args: str) -> str:
    """What `git ARGS` prints about the checkout; "" where it fails or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
