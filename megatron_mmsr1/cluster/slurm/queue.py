"""Slurm's own commands: what is asked of them, and how their answers are read."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_mmsr1.errors import RunError, UsageError

TIMEOUT_S = 60.0
GONE = "GONE"  # Slurm does not know the job any more, and there is no sacct to ask
OVER = frozenset(
    f"{GONE} COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL BOOT_FAIL OUT_OF_MEMORY DEADLINE PREEMPTED REVOKED".split()
)


@dataclass(frozen=True, slots=True)
class State:
    """Of a job, or of a task of an array."""

    state: str
    restarts: int = 0
    reason: str = ""
    exit_code: str = ""

    @property
    def over(self) -> bool:
        return self.state in OVER


def test(script: Path) -> str:
    """`sbatch --test-only`: when and where it would start. UsageError with Slurm's words if it never would."""
    done = call("sbatch", "--test-only", str(script))
    said = done.stderr.strip().removeprefix("sbatch: ")
    if done.returncode:
        raise UsageError(f"Slurm does not take {script}: {said}")
    return said


def submit(script: Path, dependency: str | None = None) -> str:
    """The job's number. RunError with Slurm's words."""
    wait = [f"--dependency={dependency}", "--kill-on-invalid-dep=yes"] if dependency else []
    done = call("sbatch", "--parsable", *wait, str(script))
    found = re.match(r"\d+", done.stdout)
    if done.returncode or not found:
        raise RunError(f"sbatch {script} failed: {(done.stderr or done.stdout).strip()}")
    return found[0]


def look(job: str, tasks: int) -> list[State]:
    """The state of each task of a job, in order; of a job that is no array `tasks` is 1."""
    done = call("scontrol", "show", "job", "--oneliner", job)
    if done.returncode:
        if "Invalid job id" not in done.stderr:
            raise RunError(f"scontrol show job {job} failed: {done.stderr.strip()}")
        return _past(job, tasks)
    records = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in done.stdout.splitlines() if line.strip()]
    found = [State(GONE)] * tasks
    for r in records:
        state = State(r["JobState"], int(r.get("Restarts", 0)), r.get("Reason", ""), r.get("ExitCode", ""))
        for task in _tasks(r.get("ArrayTaskId", "0")):
            if task < tasks:
                found[task] = state
    return found


def cancel(jobs: Sequence[str]) -> None:
    done = call("scancel", *jobs)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise RunError(f"scancel {' '.join(jobs)} failed: {done.stderr.strip()}")


def waiting(jobs: Sequence[str]) -> list[str]:
    """Those of them that are in the queue still, running or being cleaned up."""
    done = call("squeue", "--noheader", "--format=%F")
    if done.returncode:
        raise RunError(f"squeue failed: {done.stderr.strip()}")
    known = set(done.stdout.split())
    return [j for j in jobs if j in known]


def _past(job: str, tasks: int) -> list[State]:
    """From the accounting, where there is one."""
    if shutil.which("sacct") is None:
        return [State(GONE)] * tasks
    done = call("sacct", "--jobs", job, "--allocations", "--noheader", "--parsable2", "--format=JobID,State,ExitCode")
    found = [State(GONE)] * tasks
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        name, state, code = line.split("|")
        for task in _tasks(name.partition("_")[2].strip("[]") or "0"):
            if task < tasks:
                found[task] = State(state.split()[0], exit_code=code)
    return found


def _tasks(text: str) -> list[int]:
    """The numbers that Slurm writes as 3, or 0-2,5%1."""
    found: list[int] = []
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found += range(int(first), int(last or first) + 1)
    return found


def call(*argv: str) -> subprocess.CompletedProcess[str]:
    """UsageError where the command is not on this machine, RunError where it does not answer."""
    if shutil.which(argv[0]) is None:
        raise UsageError(f"there is no {argv[0]} on this machine: run this where Slurm's commands are, on a login node")
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise RunError(f"{argv[0]} did not answer within {TIMEOUT_S:g} s") from None
