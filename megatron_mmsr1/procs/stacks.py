"""What the ranks below a process do: their state, and their stack without their help, for one that hangs gives none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from megatron_mmsr1.procs.guard import descendants

TIMEOUT_S = 20.0
STATES = {"R": "runs", "S": "waits", "D": "waits for a disk or a device", "T": "is stopped", "t": "is traced", "Z": "has ended"}


@dataclass(frozen=True, slots=True)
class RankState:
    """`state`: the kernel's letter (proc(5)). `stack`: text, innermost call first; why there is none otherwise."""

    rank: int
    pid: int
    state: str
    stack: str

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid}) {STATES.get(self.state, self.state)}"


def of_ranks(root: int, *, stacks: bool = True) -> list[RankState]:
    """Of every process below `root` that torchrun gave a rank, but for what a rank itself started."""
    found = {pid: rank for pid in descendants(root) if (rank := rank_of(pid)) is not None}
    heads = {pid: rank for pid, rank in found.items() if found.get(_parent(pid)) != rank}
    made = [RankState(rank, pid, state(pid), stack(pid) if stacks else "") for pid, rank in heads.items()]
    return sorted(made, key=lambda r: r.rank)


def rank_of(pid: int) -> int | None:
    """By its environment; None for a process without a rank, or that has ended."""
    try:
        lines = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return None
    env = {key: value for key, _, value in (line.partition("=") for line in lines)}
    named = env.get("RANK", "")
    return int(named) if named.isdigit() else None


def state(pid: int) -> str:
    """The kernel's letter; Z for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def stack(pid: int) -> str:
    """By py-spy, which reads the memory of a process without its doing anything."""
    tool = shutil.which("py-spy") or str(Path(sys.executable).with_name("py-spy"))
    try:
        done = subprocess.run(
            [tool, "dump", "--nonblocking", "--pid", str(pid)], capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"no stack: {e}"
    return done.stdout if done.returncode == 0 else f"no stack: {done.stderr.strip()}"
