"""Scripts of Slurm jobs as text, and the functions in them that need no Slurm. tests/test_slurm_cluster.py runs jobs."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from megatron_mmsr1 import config
from megatron_mmsr1.cli import main
from megatron_mmsr1.cluster.slurm import queue
from megatron_mmsr1.cluster.slurm.jobs import Sweep, evaluation, missing_inputs, of_export, of_run
from megatron_mmsr1.cluster.slurm.queue import State
from megatron_mmsr1.cluster.slurm.script import FUNCTIONS, Job, render
from megatron_mmsr1.cluster.slurm.submission import Submission, Submitted, Task
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.config.slurm import SlurmConfig
from megatron_mmsr1.errors import UsageError

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "scripts" / "slurm").iterdir())
GOLDEN = Path(__file__).parent / "golden" / "slurm"
EVERYTHING: dict[str, Any] = {
    "partition": "gpu",
    "account": "lab",
    "qos": "high",
    "time": "2-00:00:00",
    "memory": "0",
    "cpus_per_node": 96,
    "exclusive": True,
    "exclude": ["n7", "n9"],
    "options": ["--reservation=big"],
    "setup": ["module load cuda/12.8"],
    "env": {"NCCL_SOCKET_IFNAME": "ib0", "NCCL_IB_HCA": "mlx5_0 mlx5_1"},
    "env_file": "keys.env",
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({"verb": "train", "name": "fvqa-train"}, {}),
    "pyxis": (
        {"verb": "sft", "name": "fvqa-sft", "nodes": 4},
        EVERYTHING | {"container": {"runtime": "pyxis", "image": "/images/mmsr1.sqsh", "mounts": ["/data:/data:ro"]}},
    ),
    "apptainer": (
        {"verb": "eval", "name": "fvqa-eval", "arguments": (("/runs/1/eval-0.yaml",), ("/runs/1/eval 1.yaml",))},
        {"gres": "gpu:h100:8", "container": {"runtime": "apptainer", "image": "my image.sif"}},
    ),
}


def rendered(name: str) -> str:
    job, slurm = CASES[name]
    defaults: dict[str, Any] = {
        "verb": "train",
        "name": "run",
        "arguments": (("/work/runs/5% of it/slurm/001/train.yaml",),),
        "nodes": 2,
        "gpus": 8,
        "directory": Path("/work/runs/5% of it/slurm/001") if name == "none" else Path("/runs/1/slurm/001"),
        "workdir": Path("/work"),
        "command": ("mmsr1",) if name != "none" else ("/opt/my env/bin/python", "-m", "megatron_mmsr1.cli"),
    }
    return render(Job(**(defaults | job)), SlurmConfig.model_validate(slurm))


@pytest.mark.parametrize("name", CASES)
def test_scripts_are_as_they_were(name: str) -> None:
    """tests/golden/slurm/NAME.sbatch, where one line stands for the functions; MMSR1_GOLDEN=1 writes them anew."""
    text = rendered(name)
    functions = FUNCTIONS.read_text().partition("\n")[2].rstrip()
    assert text.count(functions) == 1  # no file of this package is needed where it runs
    shown = text.replace(functions, "# (the functions of scripts/slurm/job.sh)")
    file = GOLDEN / f"{name}.sbatch"
    if os.environ.get("MMSR1_GOLDEN") == "1":
        file.write_text(shown)
    assert shown == file.read_text()


def bash(script: str, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`script` after the functions, under the options of every job."""
    text = f"set -euo pipefail\nsource '{FUNCTIONS}'\n{script}"
    full = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "4711", **env}
    return subprocess.run(["bash", "-c", text, "-", *argv], capture_output=True, text=True, check=False, env=full)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_that_ship_are_clean(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    checked = subprocess.run(["shellcheck", "--external-sources", script], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", CASES)
def test_scripts_that_are_written_are_clean(name: str, tmp_path: Path) -> None:
    file = tmp_path / "job.sbatch"
    file.write_text(rendered(name))
    assert subprocess.run(["bash", "-n", file], check=False).returncode == 0
    checked = subprocess.run(["shellcheck", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


# ---------------------------------------------------------------------------------------------------------------- functions
def test_secrets_are_exported_and_never_printed(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# a comment\n\nA=one two\nexport B='with $dollar'\nC=\"x=y\"\r\nD=")
    file.chmod(0o600)
    script = 'set -x; load_secrets; { set +x; } 2>/dev/null; printf "%s|" "$A" "$B" "$C" "$D"; export -p | grep -c "[ABCD]="'
    done = bash(script, MMSR1_ENV_FILE=str(file))
    assert done.stdout.startswith("one two|with $dollar|x=y||"), done.stderr
    assert not any(secret in done.stderr for secret in ("one", "dollar", "x=y"))


@pytest.mark.parametrize(("mode", "text", "says"), [(0o644, "A=hush", "chmod 600"), (0o600, "A=1\nhush", "line 2 is not")])
def test_bad_secrets_are_refused_without_a_word_of_them(tmp_path: Path, mode: int, text: str, says: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    file.chmod(mode)
    done = bash("load_secrets", MMSR1_ENV_FILE=str(file))
    assert done.returncode == 2 and says in done.stderr and "hush" not in done.stderr
    assert bash("load_secrets", MMSR1_ENV_FILE=str(tmp_path / "none")).returncode == 2


def shims(tmp_path: Path, **scripts: str) -> str:
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("resolved", "known", "address"),
    [
        ("10.0.0.5 STREAM n1", "10.9.9.9", "10.0.0.5"),
        ("", "10.9.9.9", "10.9.9.9"),  # the name does not resolve
        ("127.0.1.1 STREAM n1", "10.9.9.9", "10.9.9.9"),  # it does on the node itself: to where nobody else reaches it
        ("127.0.1.1 STREAM n1", "n1", "127.0.1.1"),
        ("", "n1", None),
    ],
)
def test_where_a_node_is_reached(tmp_path: Path, resolved: str, known: str, address: str | None) -> None:
    answer = f"echo '{resolved}'" if resolved else "exit 2"
    path = shims(tmp_path, getent=answer, scontrol=f"echo 'NodeName=n1 NodeAddr={known} NodeHostName=n1'")
    done = bash("found=$(node_address n1); echo $found", PATH=path)
    assert done.stdout.strip() == (address or "")
    assert done.returncode == (0 if address else 2) and (address or "does not resolve" in done.stderr)


def test_a_port_on_which_something_listens_is_passed_over() -> None:
    first = int(bash("free_port 127.0.0.1").stdout)
    assert 20000 <= first < 32000
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", first))
        s.listen()
        assert 20000 <= int(bash("free_port 127.0.0.1").stdout) != first


def test_a_container_that_is_none_is_refused() -> None:
    assert "none, pyxis or apptainer" in bash("use_container", CONTAINER_RUNTIME="docker").stderr
    assert "needs CONTAINER_IMAGE" in bash("use_container", CONTAINER_RUNTIME="pyxis").stderr


# ------------------------------------------------------------------------------------------------------------------ settings
@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"partitoin": "x"}, "partitoin"),
        ({"partition": "a b"}, "one word"),
        ({"options": ["--signal=TERM"]}, "--signal is set by mmsr1 itself"),
        ({"options": ["reservation=x"]}, "write an option as sbatch has it"),
        ({"options": ["--comment=x\n#SBATCH --uid=0"]}, "write an option as sbatch has it"),
        ({"gres": "gpu:8", "gpus_per_node": 8}, "give one of them"),
        ({"container": {"runtime": "pyxis"}}, "give both, or neither"),
        ({"env": {"A-B": "1"}}, "no name of a variable"),
    ],
)
def test_settings_that_make_no_job_are_refused(raw: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        SlurmConfig.model_validate(raw)


def run_config(**sections: Any) -> RunConfig:
    return config.parse({"name": "r", "model": {"path": "m"}, "output": "runs/r"} | sections)


def test_nodes_and_gpus_come_from_the_placement(tmp_path: Path) -> None:
    placement = {"trainer": {"nodes": 2, "gpus_per_node": 8}, "engines": {"nodes": 1, "count": 4, "gpus_each": 2}}
    cfg = run_config(placement=placement, train={"ranks": 16})
    job, (text,) = of_run("train", [cfg], tmp_path, tmp_path)
    assert (job.nodes, job.gpus, job.name) == (3, 8, "r-train")
    assert config.parse(yaml.safe_load(text)) == cfg
    with pytest.raises(UsageError, match="4 GPUs for 8 ranks"):
        of_run(
            "train", [run_config(placement=placement, train={"ranks": 16}, slurm={"gres": "gpu:h100:4"})], tmp_path, tmp_path
        )
    with pytest.raises(UsageError, match="mmsr1 sft does not run"):
        of_run("sft", [cfg], tmp_path, tmp_path)


@pytest.mark.parametrize(("gres", "gpus"), [("gpu:8", 8), ("gpu:h100:4", 4), ("gpu:a100_80gb:2", 2), ("tmp:100G", 0)])
def test_how_many_gpus_a_gres_is(gres: str, gpus: int, tmp_path: Path) -> None:
    cfg = run_config(slurm={"gres": gres}, placement={"colocated": True})
    assert of_run("train", [cfg], tmp_path, tmp_path)[0].gpus == gpus


def test_an_evaluation_is_of_the_trained_model_on_one_node(tmp_path: Path) -> None:
    placement = {"trainer": {"nodes": 2, "gpus_per_node": 8}, "engines": {"nodes": 2, "count": 4, "gpus_each": 2}}
    cfg = evaluation(run_config(placement=placement, train={"ranks": 16}, megatron={"tensor_parallel": 2}))
    job, _ = of_run("eval", [cfg], tmp_path, tmp_path)
    assert cfg.model.path == "runs/r/model" and (job.nodes, job.gpus) == (1, 4)


def test_a_sweep() -> None:
    sweep = Sweep.of("optimizer.lr=1e-6, 2e-6")
    assert [(c.optimizer.lr, c.output) for c in sweep.configs(run_config())] == [
        (1e-6, "runs/r/sweep/optimizer.lr=1e-6"),
        (2e-6, "runs/r/sweep/optimizer.lr=2e-6"),
    ]
    assert Sweep.of("optimizer.betas=[0.9, 0.95],[0.9, 0.99]").values == ("[0.9, 0.95]", "[0.9, 0.99]")
    for text in ("lr", "lr=", "lr=1", "lr=1,1", "=1,2", "lr=1,,2"):
        with pytest.raises(UsageError, match="at least two values"):
            Sweep.of(text)
    with pytest.raises(UsageError, match="unknown key optimizer"):
        Sweep.of("optimizer.lrr=1,2").configs(run_config())


def test_an_export_goes_where_nothing_is(tmp_path: Path) -> None:
    cfg = run_config(output=str(tmp_path / "r"))
    assert of_export([cfg], tmp_path, tmp_path).arguments == ((str(tmp_path / "r"), str(tmp_path / "r-export")),)
    (tmp_path / "r-export").mkdir()
    with pytest.raises(UsageError, match="r-export exists"):
        of_export([cfg], tmp_path, tmp_path)


# --------------------------------------------------------------------------------------------------------- Slurm's own words
RUNNING = "JobId=7 JobName=a b UserId=me(1) JobState=RUNNING Reason=None Dependency=(null) Restarts=2 ExitCode=0:0"
PENDING = "JobId=7 ArrayJobId=7 ArrayTaskId=1-2%1 JobState=PENDING Reason=Priority Restarts=0"
FAILED = "JobId=8 ArrayJobId=7 ArrayTaskId=0 JobState=FAILED Reason=NonZeroExitCode Restarts=1 ExitCode=1:0"


def test_states_are_read_by_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", shims(tmp_path, scontrol=f"echo '{RUNNING}'"))
    assert queue.look("7", 1) == [State("RUNNING", 2, "None", "0:0")]
    shims(tmp_path, scontrol=f"printf '%s\\n' '{PENDING}' '{FAILED}'")
    assert [s.state for s in queue.look("7", 3)] == ["FAILED", "PENDING", "PENDING"]


def test_a_job_that_slurm_has_forgotten_is_asked_of_the_accounting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    monkeypatch.setenv("PATH", shims(tmp_path, scontrol=forgotten, sacct="printf '7|CANCELLED by 0|0:15\\n'"))
    assert queue.look("7", 1) == [State("CANCELLED", exit_code="0:15")]
    shims(tmp_path, sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert queue.look("7", 1) == [State(queue.GONE)] and State(queue.GONE).over


def test_an_earlier_submission_is_shown_while_it_has_a_job_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of three submissions of one run: the last one's jobs and those of the first, which still waits."""
    for number, job in enumerate(("7", "8", "9"), 1):
        directory = tmp_path / "run" / "slurm" / f"{number:03}"
        directory.mkdir(parents=True)
        Submission(directory, [Submitted(job, "export", [Task(str(tmp_path / "run"), 4)])]).keep()
    (tmp_path / "bin").mkdir()
    running, over = RUNNING, RUNNING.replace("RUNNING", "COMPLETED")
    look = f'case "$4" in 7) echo "{running}";; *) echo "{over}";; esac'
    monkeypatch.setenv("PATH", shims(tmp_path / "bin", squeue="printf '7\\n'", scontrol=look))
    assert main(["slurm", "status", str(tmp_path / "run")]) == 0
    assert [line.split()[:3:2] for line in capsys.readouterr().out.splitlines()] == [["7", "RUNNING"], ["9", "COMPLETED"]]
    assert main(["slurm", "cancel", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith("nothing to cancel") and "scancel 7" in said


def test_what_this_machine_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    raw = {"model": {"path": str(tmp_path / "there")}, "data": {"train": ["no/a.parquet"], "heldout": ["no/b.parquet"]}}
    cfg = RunConfig.model_validate(raw | {"output": "no/run"})
    assert missing_inputs("train", cfg) == ["data.train=no/a.parquet", "data.heldout=no/b.parquet"]
    assert missing_inputs("eval", cfg) == ["model.path=no/run/model", "data.heldout=no/b.parquet"]


def test_a_machine_without_slurm_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no sbatch on this machine"):
        queue.submit(tmp_path / "x")


def test_the_plan_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/slurm.md: of two nodes that train and two that generate."""
    argv = ["plan", str(ROOT / "configs/qwen2.5-vl-7b-fvqa.yaml"), "--nodes", "4", "--gpus", "8"]
    assert main(argv) == 0
    assert capsys.readouterr().out.count("GPU ") >= 32
    assert main([*argv, "--steps"]) == 0
    assert capsys.readouterr().out == "trainer node0,node1\nengines node2,node3\n"
