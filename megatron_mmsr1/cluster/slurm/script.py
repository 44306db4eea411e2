"""The script of a job as text: a pure function of the job and the `slurm:` section."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_mmsr1.config.slurm import SlurmConfig

FUNCTIONS = Path(__file__).parent / "scripts" / "job.sh"
STOPPABLE = ("train", "sft")  # verbs that save what they have when they are told to stop, and go on when they are started again


@dataclass(frozen=True, slots=True)
class Job:
    """`arguments`: of mmsr1, after the verb, one list a task; several are an array. Paths are absolute. `directory`: of its
    logs. `workdir`: where relative paths of the config begin. `command`: how mmsr1 is started."""

    verb: str
    name: str
    arguments: tuple[tuple[str, ...], ...]
    nodes: int
    gpus: int
    directory: Path
    workdir: Path
    command: tuple[str, ...]


def render(job: Job, slurm: SlurmConfig) -> str:
    """A script that needs no file of this package: the shared functions stand in it."""
    functions = FUNCTIONS.read_text(encoding="utf-8").partition("\n")[2]  # without the line for shellcheck alone
    parts = [
        "#!/usr/bin/env bash",
        f"# mmsr1 {job.verb}: written by `mmsr1 slurm submit`. It can be submitted again: sbatch FILE",
        "# shellcheck disable=SC2317,SC2329  # functions that this verb does not call",
        *_options(job, slurm),
        "set -euo pipefail",
        *_settings(job, slurm),
        "",
        functions.rstrip(),
        "",
        *_setup(slurm),
        *_call(job),
    ]
    return "\n".join(parts) + "\n"


def log_name(job: Job) -> str:
    """As sbatch's patterns have it: the job's number, or an array's and the task's."""
    return "%A_%a.log" if len(job.arguments) > 1 else "%j.log"


def _options(job: Job, slurm: SlurmConfig) -> Iterator[str]:
    chosen: dict[str, object] = {
        "job-name": job.name,
        "chdir": job.workdir,  # no pattern, as the next is
        "output": _pattern(job.directory) + "/" + log_name(job),
        "open-mode": "append",
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "time": slurm.time,
        "gpus-per-node": job.gpus if job.gpus and not slurm.gres else None,
        "gres": slurm.gres if job.gpus or slurm.gpus_per_node is None else None,
        "cpus-per-task": slurm.cpus_per_node,
        "mem": slurm.memory,
        "exclude": ",".join(slurm.exclude) or None,
        "array": f"0-{len(job.arguments) - 1}" if len(job.arguments) > 1 else None,
        "signal": f"B:USR1@{slurm.stop_before_s}" if job.verb in STOPPABLE else None,
    }
    for key, value in chosen.items():
        if value is not None:
            yield f'#SBATCH --{key}="{value}"' if " " in str(value) else f"#SBATCH --{key}={value}"
    if slurm.exclusive:
        yield "#SBATCH --exclusive"
    yield "#SBATCH --requeue" if job.verb in STOPPABLE else "#SBATCH --no-requeue"
    yield from (f"#SBATCH {option}" for option in slurm.options)


def _pattern(path: Path) -> str:
    return str(path).replace("%", "%%")


def _settings(job: Job, slurm: SlurmConfig) -> Iterator[str]:
    container = slurm.container
    if container.runtime != "none":
        yield f"export CONTAINER_RUNTIME={container.runtime} CONTAINER_IMAGE={shlex.quote(container.image or '')}"
        if mounts := list(dict.fromkeys([*_outside(job), *container.mounts])):
            yield f"export CONTAINER_MOUNTS={shlex.quote(','.join(mounts))}"
    for name, value in slurm.env.items():
        yield f"export {name}={shlex.quote(value)}"
    yield f"export MMSR1_LOGS={shlex.quote(str(job.directory))} MMSR1_REQUEUES={slurm.requeues}"
    if slurm.env_file:
        yield f"export MMSR1_ENV_FILE={shlex.quote(str((job.workdir / slurm.env_file).absolute()))}"
    yield f"MMSR1_COMMAND=({_words(job.command)})"


def _outside(job: Job) -> list[str]:
    """The run's own directory, where the working directory's mount does not hold it."""
    return [] if job.directory.is_relative_to(job.workdir) else [f"{job.directory.parent.parent}:{job.directory.parent.parent}"]


def _setup(slurm: SlurmConfig) -> list[str]:
    """Modules read variables that may not be set."""
    return ["set +u", *slurm.setup, "set -u", ""] if slurm.setup else []


def _call(job: Job) -> Iterator[str]:
    first, *more = job.arguments
    function = f"mmsr1_job {job.verb}" if job.verb in ("train", "sft", "eval") else f"mmsr1_alone {job.verb}"
    if not more:
        yield f"{function} {_words(first)}"
        return
    yield 'case "$SLURM_ARRAY_TASK_ID" in'
    for number, arguments in enumerate(job.arguments):
        yield f"  {number}) {function} {_words(arguments)} ;;"
    yield "esac"


def _words(words: Sequence[str]) -> str:
    return " ".join(map(shlex.quote, words))
