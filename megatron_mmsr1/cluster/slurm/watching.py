"""Jobs that were submitted: how they stand, what they say, and their end."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from megatron_mmsr1.cluster.slurm import queue
from megatron_mmsr1.cluster.slurm.queue import State
from megatron_mmsr1.cluster.slurm.submission import Submission, Submitted
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.procs.growing import NewLines
from megatron_mmsr1.run.directory import logged_steps

POLL_S = 1.0
GONE_WITHIN_S = 300.0  # KillWait, epilogs, a node that is slow to clean up
Say = Callable[[str], None]


def unfinished(submissions: Sequence[Submission]) -> list[Submission]:
    """Those that have jobs in the queue."""
    there = queue.waiting([j.id for s in submissions for j in s.jobs])
    return [s for s in submissions if any(j.id in there for j in s.jobs)]


def status(submission: Submission) -> list[str]:
    """A line a run: job, verb, state, restarts, step, where it writes; and a line with what it said last."""
    lines: list[str] = []
    for job in submission.jobs:
        for task, state in enumerate(queue.look(job.id, len(job.tasks))):
            where = job.tasks[task]
            name = _name(job, task)
            step = f"step {logged_steps(Path(where.output))}/{where.steps}" if job.verb in ("train", "sft") else ""
            lines.append(f"{name:<10} {job.verb:<7} {_described(state):<28} restarts {state.restarts}  {step}".rstrip())
            if said := last_line(submission.log(job, task)):
                lines.append(f"{'':<10} {said}")
    return lines


def _described(state: State) -> str:
    if state.state == queue.GONE:
        return "not in the queue any more"
    waits = state.state == "PENDING" and state.reason not in ("", "None")
    failed = state.over and state.state not in ("COMPLETED", "CANCELLED") and state.exit_code
    return state.state + (f" ({state.reason})" if waits else f" (exit {state.exit_code})" if failed else "")


def _name(job: Submitted, task: int) -> str:
    return f"{job.id}_{task}" if len(job.tasks) > 1 else job.id


def last_line(log: Path) -> str:
    if not log.is_file():
        return ""
    with log.open("rb") as f:
        f.seek(max(0, log.stat().st_size - 4096))
        lines = f.read().decode("utf-8", "replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def logs(submission: Submission, step: str | None, lines: int) -> Iterator[str]:
    """The end of the logs of the first job's runs: the head's, or those of one step's agents."""
    job = submission.jobs[0]
    for task in range(len(job.tasks)):
        agents = submission.step_logs(job, task)
        found = [a for a in agents if f".{step}." in a.name] if step else [submission.log(job, task)]
        if step and not found:
            known = sorted({m[1] for a in agents if (m := re.search(r"\.\d+\.(\w+)\.", a.name))})
            raise UsageError(f"job {_name(job, task)} has no log of a step {step}: it has {', '.join(known) or 'none'}")
        for log in found:
            yield f"==> {log} <=="
            if not log.is_file():
                yield f"(nothing yet: {_name(job, task)} has not begun)"
                continue
            yield from log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        if not step and agents:
            yield f"==> logs of its steps: {', '.join(a.name for a in agents)} <=="


def follow(submission: Submission, say: Say) -> None:
    """Show what the jobs say, a line a step, and how they stand, until all of them are over.

    RunError for one that did not complete.
    """
    runs = [(job, task) for job in submission.jobs for task in range(len(job.tasks))]
    logs_of = {_name(*run): NewLines(submission.log(*run), from_start=True) for run in runs}
    before: dict[str, str] = {}
    while True:
        states: dict[str, State] = {}
        for job in submission.jobs:
            for task, state in enumerate(queue.look(job.id, len(job.tasks))):
                states[_name(job, task)] = state
        for job, task in runs:
            name = _name(job, task)
            prefix = f"[{name}] " if len(runs) > 1 else ""
            for line in logs_of[name].read():
                say(prefix + line.decode("utf-8", "replace"))
            described = _described(states[name])
            if before.get(name) != described:
                say(f"job {name} ({job.verb}): {described}")
                before[name] = described
        if all(s.over for s in states.values()):
            break
        time.sleep(POLL_S)
    failed = [f"{name} is {_described(s)}" for name, s in states.items() if s.state not in ("COMPLETED", queue.GONE)]
    if failed:
        raise RunError(f"job {'; job '.join(failed)}. The logs: {submission.directory}")


def cancel(submission: Submission) -> list[str]:
    """Cancel what is not over, and wait until Slurm has cleaned it up; returns the numbers. RunError if that takes too long."""
    numbers = [j.id for j in submission.jobs]
    there = queue.waiting(numbers)
    if there:
        queue.cancel(there)
    end = time.monotonic() + GONE_WITHIN_S
    left = there
    while left:
        if time.monotonic() > end:
            raise RunError(f"after {GONE_WITHIN_S:g} s Slurm still cleans up {', '.join(left)}: squeue --jobs {','.join(left)}")
        time.sleep(POLL_S)
        left = queue.waiting(left)
    return there
