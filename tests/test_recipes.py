"""The recipes: their scripts are sound, and the commands that they run are commands of ours. Nothing is built or installed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import megatron_mmsr1.cli.entry as cli
from serving import settings

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "serving" / "recipes"
SLURM = ROOT / "scripts" / "slurm"
SERVE, TUNNEL = SLURM / "serve.sbatch", SLURM / "tunnel.sh"
UNIT = RECIPES / "systemd" / "mmsr1.service"


def run(*command: str | Path, path: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    where = f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]
    return subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PATH": where, **env},
    )


@pytest.fixture
def tools(tmp_path: Path):
    """A directory for the PATH; `tools(name, script)` puts a command there."""
    home = tmp_path / "bin"
    home.mkdir()

    def add(name: str, script: str) -> Path:
        (home / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (home / name).chmod(0o755)
        return home

    return add


def test_the_unit_is_sound() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here")
    checked = run("systemd-analyze", "verify", UNIT)
    assert checked.returncode == 0 and "mmsr1.service" not in checked.stderr, checked.stderr


def served(words: list[str]) -> settings.ServeConfig:
    """What `mmsr1 WORDS` would serve."""
    args = cli.parse(words)
    return settings.load(args.model, args.config, args.override)


def test_the_unit_runs_a_command_of_ours() -> None:
    line = re.search(r"^ExecStart=\S+ mmsr1 (.*)$", UNIT.read_text(), re.MULTILINE)
    assert line
    g = served(shlex.split(line[1].replace("${MODEL}", "/model").replace("%", "/"))).gateway
    assert g.host == "0.0.0.0" and g.keys  # never open without


def test_the_job_refuses_what_it_cannot_serve(tmp_path) -> None:
    job = {"SLURM_JOB_ID": "1", "MMSR1_SCRIPTS": str(SLURM), "MMSR1_KEYS": str(tmp_path / "keys")}
    assert "name a checkpoint" in run(SERVE, path=None, **job).stderr
    missing = run(SERVE, "/model", path=None, **job)
    assert missing.returncode == 2 and "--new-key" in missing.stderr


NODE = "NodeName=n1 Arch=x86_64 CoresPerSocket=1 NodeAddr=10.1.2.3 NodeHostName=n1 Version=22.05.8"


@pytest.mark.parametrize(
    ("said", "args", "resolves", "expected"),
    [
        ("RUNNING|n1|mmsr1 port=20711", ["4711"], True, "ssh -N -L 127.0.0.1:8000:n1:20711 me@login"),
        ("RUNNING|n1|mmsr1 port=20711", ["4711", "9000"], False, "ssh -N -L 127.0.0.1:9000:10.1.2.3:20711 me@login"),
        ("PENDING||(null)", ["4711"], True, "is PENDING"),
        ("RUNNING|n1|(null)", ["4711"], True, "has said no port"),
        ("", ["4711"], True, "not in the queue"),
    ],
)
def test_the_tunnel(tools, said, args, resolves, expected) -> None:
    tools("squeue", f"echo '{said}'")
    tools("getent", f"exit {0 if resolves else 2}")
    path = tools("scontrol", f"echo '{NODE}'")
    done = run(TUNNEL, *args, path=path, MMSR1_LOGIN="me@login")
    if expected.startswith("ssh"):
        assert (done.returncode, done.stdout) == (0, expected + "\n")
    else:
        assert done.returncode == 1 and expected in done.stderr and not done.stdout


def test_the_tunnel_of_nothing(tools) -> None:
    path = tools("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert "no job 4711" in run(TUNNEL, "4711", path=path).stderr
    for args in ([], ["x"], ["1; id"], ["1", "2", "3"]):
        assert run(TUNNEL, *args, path=path).returncode == 2
