"""A submission: the directory OUTPUT/slurm/NNN with the configs and scripts of its jobs, their logs, and jobs.json."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_mmsr1.cluster.slurm import jobs, queue
from megatron_mmsr1.cluster.slurm.script import Job, render
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data import files
from megatron_mmsr1.errors import RunError, UsageError

RECORD = "jobs.json"


@dataclass(frozen=True, slots=True)
class Task:
    """One run: where it writes, and how many steps it has."""

    output: str
    steps: int


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that Slurm took; more than one task: an array."""

    id: str
    verb: str
    tasks: list[Task]


@dataclass(slots=True)
class Submission:
    directory: Path
    jobs: list[Submitted]

    @classmethod
    def latest(cls, output: Path) -> Submission:
        """UsageError where nothing was submitted."""
        return cls.all(output)[-1]

    @classmethod
    def all(cls, output: Path) -> list[Submission]:
        """The oldest first. UsageError where nothing was submitted."""
        found = sorted(output.glob(f"slurm/*/{RECORD}"))
        if not found:
            raise UsageError(f"nothing was submitted for {output}: mmsr1 slurm submit CONFIG")
        return [cls._read(file) for file in found]

    @classmethod
    def _read(cls, file: Path) -> Submission:
        raw = json.loads(file.read_text(encoding="utf-8"))
        return cls(file.parent, [Submitted(j["id"], j["verb"], [Task(**t) for t in j["tasks"]]) for j in raw])

    def log(self, job: Submitted, task: int) -> Path:
        """What the job's script and its head say, over all restarts."""
        return self.directory / (f"{job.id}_{task}.log" if len(job.tasks) > 1 else f"{job.id}.log")

    def step_logs(self, job: Submitted, task: int) -> list[Path]:
        """Of the agents: JOB.RESTART.STEP.NODE.log."""
        return sorted(self.directory.glob(f"{self.log(job, task).stem}.*.log"))

    def keep(self) -> None:
        """Writes jobs.json."""
        files.write_text(self.directory / RECORD, json.dumps([asdict(j) for j in self.jobs], indent=1) + "\n")


def submit(cfg: RunConfig, verb: str, *, then: Sequence[str] = (), sweep: jobs.Sweep | None = None) -> Submission:
    """Write, check and submit the jobs; Slurm's words about the first one's start go to the caller by `Submission`.

    Needs sbatch and bash of this machine, nothing else. UsageError for what can be known to be wrong, by file; RunError where
    sbatch fails later in the chain: what was taken until then is in jobs.json.
    """
    _secrets(cfg)
    configs = sweep.configs(cfg) if sweep else [cfg]
    directory, workdir = next_directory(Path(cfg.output).absolute() / "slurm"), Path.cwd()
    written: list[tuple[Job, Path]] = []
    try:
        for each in (verb, *then):
            if each == "export":
                job, texts = jobs.of_export(configs, directory, workdir), []
            else:
                job, texts = jobs.of_run(each, configs, directory, workdir)
            for (file, *_), text in zip(job.arguments, texts, strict=False):
                files.write_text(Path(file), text)
            script = directory / f"{each}.sbatch"
            files.write_text(script, render(job, cfg.slurm))
            script.chmod(0o755)
            check(script)
            written.append((job, script))
    except BaseException:
        shutil.rmtree(directory)
        raise
    tasks = [Task(str(Path(c.output).absolute()), c.train.steps) for c in configs]
    submission = Submission(directory, [])
    for job, script in written:
        after = "aftercorr" if len(tasks) > 1 else "afterok"
        previous = submission.jobs[-1].id if submission.jobs else None
        number = queue.submit(script, previous and f"{after}:{previous}")
        submission.jobs.append(Submitted(number, job.verb, tasks))
        submission.keep()
    return submission


def check(script: Path) -> None:
    """By bash, by shellcheck where there is one, by sbatch --test-only. UsageError with what they say."""
    commands = [["bash", "-n", str(script)]]
    if shutil.which("shellcheck"):
        commands.append(["shellcheck", "--severity=error", "--shell=bash", str(script)])
    for argv in commands:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stdout + done.stderr).strip()
            raise UsageError(f"{argv[0]} refuses the job's script; is a line of slurm.setup wrong?\n{said}")
    queue.test(script)


def next_directory(parent: Path) -> Path:
    """The next free number in three digits. RunError where it cannot be made."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            if not (found := parent / f"{number:03}").exists():
                found.mkdir()
                return found
    except OSError as e:
        raise RunError(f"{parent} cannot be written ({e.strerror})") from None
    raise RunError(f"{parent} holds 999 submissions: remove old ones")


def _secrets(cfg: RunConfig) -> None:
    if cfg.slurm.env_file is None:
        return
    file = Path(cfg.slurm.env_file)
    if not file.is_file():
        raise UsageError(f"slurm.env_file: there is nothing at {file}")
    found = file.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o177:
        raise UsageError(f"slurm.env_file: {file} holds secrets, and others may read it: chmod 600 {file}")
