"""Jobs on a real Slurm of two nodes (tests/slurm_cluster.py), with a program that is told when to go on in training's place.

./scripts/test.sh --slow tests/test_slurm_cluster.py
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from slurm_cluster import Cluster

ROOT = Path(__file__).parent.parent
PROGRAM = Path(__file__).parent / "slurm_program.py"
MMSR1 = [sys.executable, "-m", "megatron_mmsr1.cli"]
pytestmark = pytest.mark.slow


class Run:
    """One config and what was submitted of it. The directory's name has a space and a percent sign, as a person's may."""

    def __init__(self, slurm: Cluster, directory: Path) -> None:
        self.slurm, self.directory = slurm, directory / "5% of it"
        self.directory.mkdir()
        self.out = self.directory / "runs" / "one"
        self.out.mkdir(parents=True)
        self.config = self.directory / "run.yaml"
        self.settings: dict[str, Any] = {
            "name": "tiny",
            "model": {"path": "model"},
            "output": str(self.out),
            "slurm": {"command": [sys.executable, str(PROGRAM)], "cpus_per_node": 2},
            "train": {"steps": 3},
        }
        self.write()

    def write(self, **slurm: Any) -> None:
        self.settings["slurm"].update(slurm)
        self.config.write_text(yaml.safe_dump(self.settings))

    def two_nodes(self) -> None:
        self.settings |= {"train": {"steps": 3, "ranks": 8}, "placement": {"engines": {"nodes": 1}}}
        self.write(gpus_per_node=8)

    def mmsr1(self, *argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        paths = {"PYTHONPATH": str(ROOT)}
        return self.slurm.run(
            *MMSR1, "slurm", argv[0], str(self.config), *argv[1:], cwd=self.directory, env=paths | (env or {})
        )

    def submit(self, *argv: str, **env: str) -> list[str]:
        done = self.mmsr1("submit", *argv, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def go(self, *steps: int, out: Path | None = None) -> None:
        for step in steps:
            ((out or self.out) / f"go.{step}").touch()

    def lives(self) -> list[dict[str, Any]]:
        file = self.out / "lives.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def log(self, job: str) -> str:
        (found,) = self.out.glob(f"slurm/*/{job}.log")
        return found.read_text()


@pytest.fixture
def run(slurm: Cluster, tmp_path: Path) -> Run:
    return Run(slurm, tmp_path)


def eventually(what: Callable[[], Any], within_s: float = 60) -> Any:
    end = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < end, f"still not so: {what}"
        time.sleep(0.1)
    return found


def test_two_nodes_train_stop_before_the_limit_and_go_on(run: Run) -> None:
    """USR1 reaches the head alone; it leaves with 75, the job is requeued and goes on where it was; agents on every node."""
    run.two_nodes()
    (job,) = run.submit()
    eventually(run.lives)
    run.go(1)
    eventually(lambda: "GRPO 1/3" in run.log(job))
    # What Slurm does stop_before_s before the time limit.
    assert run.slurm.run("scancel", "--batch", "--signal=USR1", job).returncode == 0
    requeued = run.slurm.until(job, "PENDING")
    assert requeued["Restarts"] == "1"
    eventually(lambda: run.slurm.show(job)["Reason"] == "BeginTime")  # nobody changed its start time
    run.slurm.start_now(job)
    run.go(2, 3)
    assert run.slurm.until(job, "COMPLETED")["ExitCode"] == "0:0"
    first, second = run.lives()
    agents = [["engines", "n2"], ["trainer", "n1"], ["trainer", "n2"]]
    assert (first["from"], second["from"]) == (0, 1) and first["agents"] == second["agents"] == agents
    assert second["env"]["SLURM_RESTART_COUNT"] == "1" and second["env"]["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert second["cwd"] == str(run.directory)
    said = run.log(job)
    assert "SIGUSR1 arrived" in said and "back into the queue" in said and said.count("ended with exit code") == 2
    names = {p.name for p in run.out.glob("slurm/001/*.*.*.*.log")}
    assert names == {
        f"{job}.{r}.{s}.{n}.log" for r in (0, 1) for s, n in (("trainer", "n1"), ("trainer", "n2"), ("engines", "n2"))
    }
    trainer = (run.out / "slurm" / "001" / f"{job}.0.trainer.n2.log").read_text()
    assert "agent of trainer on n2, GPUs 0,1,2,3,4,5,6,7" in trainer


def test_a_job_is_requeued_only_so_often(run: Run) -> None:
    run.write(requeues=0)
    (job,) = run.submit()
    eventually(run.lives)
    run.slurm.run("scancel", "--batch", "--signal=USR1", job)
    assert run.slurm.until(job, "FAILED")["ExitCode"] == "1:0"
    assert "requeued 0 times already" in run.log(job)


def test_before_the_limit_slurm_itself_sends_the_signal(run: Run) -> None:
    """Sent up to a minute before it is due."""
    run.write(time="1", stop_before_s=59)
    (job,) = run.submit()
    found = run.slurm.until(job, "PENDING", "RUNNING")
    eventually(lambda: run.slurm.show(job)["Restarts"] == "1", within_s=120)
    assert found["TimeLimit"] == "00:01:00" and "SIGUSR1 arrived" in run.log(job)
    assert run.mmsr1("cancel").returncode == 0


def test_status_logs_and_cancel(run: Run) -> None:
    run.two_nodes()
    (job,) = run.submit()
    eventually(run.lives)
    run.go(1)
    eventually(lambda: "GRPO 1/3" in run.log(job))
    said = run.mmsr1("status").stdout
    assert re.match(rf"{job} +train +RUNNING +restarts 0  step 1/3\n +GRPO 1/3\n$", said), said
    assert "GRPO 1/3" in run.mmsr1("logs").stdout
    assert "agent of engines on n2" in run.mmsr1("logs", "--step", "engines").stdout
    refused = run.mmsr1("logs", "--step", "engine")
    assert refused.returncode == 2 and "it has engines, trainer" in refused.stderr
    cancelled = run.mmsr1("cancel")
    assert cancelled.returncode == 0 and cancelled.stdout == f"cancelled and gone: {job}\n"
    assert run.slurm.run("squeue", "-h").stdout == ""
    assert run.slurm.show(job)["JobState"] == "CANCELLED"
    assert "nothing to cancel" in run.mmsr1("cancel").stdout
    assert re.match(rf"{job} +train +CANCELLED", run.mmsr1("status").stdout)


def test_what_follows_waits_for_a_run_that_is_requeued(run: Run) -> None:
    jobs = run.submit("--then", "eval,export")
    train, evaluation, export = jobs
    eventually(run.lives)
    run.slurm.run("scancel", "--batch", "--signal=USR1", train)
    run.slurm.until(train, "PENDING")
    assert run.slurm.show(evaluation)["Reason"] == "Dependency"
    run.slurm.start_now(train)
    run.go(1, 2, 3)
    assert run.slurm.until(export, "COMPLETED")["JobState"] == "COMPLETED"
    assert f"evaluated {run.out}/model" in run.log(evaluation)
    assert Path(f"{run.out}-export").is_dir()
    again = run.mmsr1("submit", "--then", "export")
    assert again.returncode == 2 and "exists, where the export would go" in again.stderr
    assert not (run.out / "slurm" / "002").exists()


def test_what_follows_a_failure_is_dropped(run: Run) -> None:
    (run.out / "fail").touch()
    train, evaluation = run.submit("--then", "eval")
    assert run.slurm.until(train, "FAILED")["ExitCode"] == "9:0"
    run.slurm.until(evaluation, "CANCELLED")
    assert "FAILED (exit 9:0)" in run.mmsr1("status").stdout


def test_a_sweep_is_an_array_of_runs_of_their_own(run: Run) -> None:
    """One task is requeued alone, also the one whose number is the whole array's."""
    (array,) = run.submit("--sweep", "optimizer.lr=1e-6,2e-6,3e-6")
    outs = [run.out / "sweep" / f"optimizer.lr={v}e-6" for v in (1, 2, 3)]
    eventually(lambda: all((o / "lives.jsonl").exists() for o in outs))
    shown = run.slurm.run("scontrol", "show", "job", "-o", array).stdout
    own = {m[2]: m[1] for m in re.finditer(r"JobId=(\d+) ArrayJobId=\d+ ArrayTaskId=(\d+)", shown)}
    assert array in own.values()
    (task,) = [t for t, job in own.items() if job == array]
    run.slurm.run("scancel", "--batch", "--signal=USR1", f"{array}_{task}")
    eventually(lambda: "Restarts=1" in run.slurm.run("scontrol", "show", "job", "-o", array).stdout)
    for out in outs:
        run.go(1, 2, 3, out=out)
    eventually(lambda: run.mmsr1("status").stdout.count("COMPLETED") == 2)
    run.slurm.start_now(f"{array}_{task}")
    eventually(lambda: run.mmsr1("status").stdout.count("COMPLETED") == 3)
    lives = [len((o / "lives.jsonl").read_text().splitlines()) for o in outs]
    assert sorted(lives) == [1, 1, 2] and lives[int(task)] == 2
    rates = [yaml.safe_load((run.out / f"slurm/001/train-{i}.yaml").read_text())["optimizer"]["lr"] for i in range(3)]
    assert rates == [1e-6, 2e-6, 3e-6]


def test_secrets_reach_the_program_and_no_log(run: Run) -> None:
    secrets = run.directory / "keys.env"
    secrets.write_text('# keys\nexport SECRET_KEY="hunter two"\n\n')
    secrets.chmod(0o600)
    run.write(env_file="keys.env", env={"NCCL_TEST": "it's set"})
    run.go(1, 2, 3)
    (job,) = run.submit("--follow")[:1]
    run.slurm.until(job, "COMPLETED")
    (life,) = run.lives()
    assert life["env"]["SECRET_KEY"] == "hunter two" and life["env"]["NCCL_TEST"] == "it's set"
    held = [p for p in (run.out / "slurm").rglob("*") if p.is_file() and b"hunter" in p.read_bytes()]
    assert not held
    assert "hunter" not in run.slurm.run("scontrol", "show", "job", job).stdout


def test_secrets_that_others_may_read_are_refused_on_the_node_too(run: Run) -> None:
    secrets = run.directory / "keys.env"
    secrets.write_text("SECRET_KEY=hunter2\n")
    secrets.chmod(0o600)
    run.write(env_file="keys.env", setup=["chmod 644 keys.env"])  # after submit has looked
    (job,) = run.submit()
    run.slurm.until(job, "FAILED")
    assert "chmod 600" in run.log(job) and "hunter2" not in run.log(job) and not run.lives()


def test_following_shows_every_step_and_ends_with_the_job(run: Run) -> None:
    run.go(1, 2, 3)
    done = run.mmsr1("submit", "--follow")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("GRPO")] == ["GRPO 1/3", "GRPO 2/3", "GRPO 3/3"]
    assert lines[-1].endswith("(train): COMPLETED")
    (run.out / "fail").touch()
    (run.out / "metrics.jsonl").unlink()
    failed = run.mmsr1("submit", "--follow")
    assert failed.returncode == 1 and "FAILED (exit 9:0)" in failed.stderr


def test_submit_needs_sbatch_alone(run: Run, tmp_path: Path) -> None:
    """No other command of Slurm, and no torch."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "sbatch"):
        (tools / name).symlink_to(shutil.which(name) or "")
    code = (
        "import sys; from megatron_mmsr1.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or any(m in sys.modules for m in ('torch', 'sglang', 'megatron.core')))"
    )
    done = run.slurm.run(
        *(sys.executable, "-c", code, "slurm", "submit", run.config), env={"PATH": str(tools), "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert run.mmsr1("cancel").returncode == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"partition": "nowhere"}, "invalid partition"),
        ({"gpus_per_node": 9}, "Requested node configuration is not available"),
        ({"setup": ["if true"]}, "refuses the job's script"),
        ({"options": ["--no-such-option=1"]}, "unrecognized option"),
    ],
)
def test_what_slurm_would_never_run_is_refused_and_leaves_nothing(run: Run, settings: dict[str, Any], says: str) -> None:
    run.write(**settings)
    done = run.mmsr1("submit")
    assert done.returncode == 2 and says in done.stderr and done.stdout == ""
    assert list((run.out / "slurm").iterdir()) == []


SRUN = """#!/usr/bin/env bash
words=()
for word in "$@"; do
  case $word in --container-*|--no-container-*) echo "$word" >>{seen} ;; *) words+=("$word") ;; esac
done
exec {srun} "${{words[@]}}"
"""
APPTAINER = """#!/usr/bin/env bash
echo "$*" >>{seen}
while [[ $1 != *.sif ]]; do shift; done
shift
exec "$@"
"""


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_in_a_container_every_step_is_started_by_it(run: Run, runtime: str, tmp_path: Path) -> None:
    """Neither runtime is here. What stands in its place writes down how it is called, and starts the command."""
    tools, seen = tmp_path / "tools", tmp_path / "seen"
    tools.mkdir()
    name, text = ("srun", SRUN) if runtime == "pyxis" else ("apptainer", APPTAINER)
    (tools / name).write_text(text.format(seen=seen, srun=shutil.which("srun")))
    (tools / name).chmod(0o755)
    run.two_nodes()
    image = "my image.sif" if runtime == "apptainer" else "docker://mmsr1:1"
    run.write(container={"runtime": runtime, "image": image, "mounts": ["/data:/data:ro"]})
    run.go(1, 2, 3)
    (job,) = run.submit(PATH=f"{tools}:{os.environ['PATH']}")
    run.slurm.until(job, "COMPLETED")
    (life,) = run.lives()
    assert len(life["agents"]) == 3
    calls = seen.read_text().splitlines()
    mounts = f"{run.directory}:{run.directory},/data:/data:ro"
    if runtime == "pyxis":  # the plan, two steps, the head
        assert calls.count("--container-image=docker://mmsr1:1") == 4
        assert calls.count(f"--container-mounts={mounts}") == 4
    else:  # the same, once a node
        assert len(calls) == 5
        assert all(c.startswith(f"exec --bind {mounts} --pwd {run.directory} --nv my image.sif ") for c in calls)


def test_a_server_is_found_by_its_tunnel_and_told_to_end(run: Run) -> None:
    keys, state = run.directory / "gateway.keys", run.directory / "state"
    keys.touch()
    env = {"MMSR1_COMMAND": str(program(run)), "MMSR1_KEYS": str(keys), "MMSR1_STATE": str(state)}
    (run.directory / "scripts").symlink_to(ROOT / "scripts")
    argv = ["sbatch", "--parsable", "--cpus-per-task=2", "--output=job.log", "scripts/slurm/serve.sbatch", "my model"]
    job = run.slurm.run(*argv, "replicas=2", env=env, cwd=run.directory).stdout.strip()
    served = eventually(lambda: state.is_dir() and (state / "served").exists() and (state / "served").read_text().splitlines())
    assert served[:4] == ["my model", "replicas=2", "--state", str(state)]
    assert served[4] == "gateway.host=0.0.0.0" and served[6] == f"gateway.keys={keys}"
    port = served[5].removeprefix("gateway.port=")
    tunnel = run.slurm.run(ROOT / "scripts/slurm/tunnel.sh", job, env={"MMSR1_LOGIN": "me@login"})
    assert tunnel.stdout == f"ssh -N -L 127.0.0.1:8000:127.0.0.1:{port} me@login\n", tunnel.stderr
    assert run.slurm.run("scancel", "--batch", "--signal=TERM", job).returncode == 0
    run.slurm.until(job, "COMPLETED")
    assert (state / "ended").exists()


def program(run: Run) -> Path:
    """`mmsr1` as one word."""
    file = run.directory / "mmsr1"
    file.write_text(f'#!/bin/sh\nexec {sys.executable} {PROGRAM} "$@"\n')
    file.chmod(0o755)
    return file


@pytest.mark.parametrize("script", ["train", "sft", "eval"])
def test_the_scripts_are_taken_as_they_are(slurm: Cluster, script: str) -> None:
    done = slurm.run(
        "sbatch", "--test-only", "--nodes=2", "--gpus-per-node=8", ROOT / "scripts/slurm" / f"{script}.sbatch", "c"
    )
    assert done.returncode == 0, done.stderr


def test_a_script_by_hand(run: Run) -> None:
    run.two_nodes()
    run.go(1, 2, 3)
    env = {"MMSR1_COMMAND": str(program(run))}
    argv = ["sbatch", "--parsable", "--nodes=2", "--gpus-per-node=8", "--output=job.log", "scripts/slurm/train.sbatch"]
    (run.directory / "scripts").symlink_to(ROOT / "scripts")
    done = run.slurm.run(*argv, run.config, env=env, cwd=run.directory)
    assert done.returncode == 0, done.stderr
    run.slurm.until(done.stdout.strip(), "COMPLETED")
    assert len(run.lives()[0]["agents"]) == 3


def test_the_doctor_looks_at_both_nodes(run: Run) -> None:
    """A task a node under srun; the first prints both, and one table: files are seen, clocks are near, the all-reduce sums."""
    argv = ["srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=0", *MMSR1, "doctor", run.config, "--json"]
    only = ("machine", "allreduce", "disk", "shared", "clock")
    done = run.slurm.run(*argv, *(f"--only={n}" for n in only), cwd=run.directory, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    rows = {node: [r for r in said["findings"] if r["node"] == node] for node in ("n1", "n2", "")}
    assert rows[""] == [] and said["level"] in ("ok", "warning")
    assert [{r["check"] for r in rows[n]} for n in ("n1", "n2")] == [set(only) - {"clock"}, set(only) - {"allreduce"}]
    sizes = [r["data"] for r in rows["n1"] if r["check"] == "allreduce"]
    assert len(sizes) == 3 and all(d["tasks"] == 2 and d["bus_gb_s"] > 0 for d in sizes)
    (seen,) = [r["data"]["ms"] for r in rows["n1"] if r["check"] == "shared"]
    assert list(seen) == ["n2"] and seen["n2"] >= 0
    (clock,) = [r["data"] for r in rows["n2"] if r["check"] == "clock"]
    assert abs(clock["offset_s"]) <= clock["error_s"] + 1e-9  # the rounding of a division

    apart = f"exec {shlex.join(map(str, argv[4:-1]))} output={shlex.quote(str(run.out))}/$SLURMD_NODENAME --only shared"
    for node in ("n1", "n2"):
        (run.out / node).mkdir()
    done = run.slurm.run(*argv[:4], "bash", "-c", apart, cwd=run.directory, env={"PYTHONPATH": str(ROOT)})
    assert (
        done.returncode == 1 and "does not show the files of n2" in done.stdout and "the doctor found 2 errors" in done.stderr
    )
