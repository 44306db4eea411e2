"""The scripts around the environment: what they find, what they refuse, what they say."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of a checkout as scripts/env.sh looks at before it installs anything."""
    d = tmp_path / "checkout"
    (d / "scripts").mkdir(parents=True)
    for name in ("requirements.lock", "pyproject.toml", "scripts/env.sh", "scripts/bootstrap.in"):
        shutil.copy(ROOT / name, d / name)
    return d


def bare_path(tmp_path: Path) -> str:
    """A PATH with the tools that the script uses, and a python3.12 that refuses to run, as a version manager's shim does."""
    d = tmp_path / "bin"
    d.mkdir()
    for tool in ("bash", "dirname", "cat", "sha256sum", "cut", "sed", "grep", "mkdir", "flock", "rm", "mv"):
        found = shutil.which(tool)
        assert found, tool
        (d / tool).symlink_to(found)
    shim = d / "python3.12"
    shim.write_text("#!/bin/sh\necho 'version 3.12 is not set' >&2\nexit 127\n")
    shim.chmod(0o755)
    return str(d)


def env_sh(checkout: Path, tmp_path: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    path = env.pop("PATH", None) or bare_path(tmp_path)
    script = [str(checkout / "scripts" / "env.sh"), *argv]
    full = {"HOME": str(home), "PATH": path, **env}
    return subprocess.run(["bash", *script], capture_output=True, text=True, check=False, env=full, cwd=tmp_path)


def stamp(venv: Path, checkout: Path) -> None:
    """What a finished installation leaves."""
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    lock = (checkout / "requirements.lock").read_bytes() + (checkout / "scripts" / "bootstrap.in").read_bytes()
    (venv / ".mmsr1-lock").write_text(hashlib.sha256(lock).hexdigest() + "\nanother checkout\n")


@pytest.mark.skipif(os.path.exists("/usr/bin/python3.12") or os.path.exists("/usr/local/bin/python3.12"), reason="one is there")
def test_without_any_python_312_it_says_what_to_install(checkout: Path, tmp_path: Path) -> None:
    done = env_sh(checkout, tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert "needs Python 3.12" in done.stderr and "bin/python3.12" in done.stderr  # names what it tried
    for how in ("apt-get install python3.12 python3.12-venv", "uv python install 3.12", "pyenv install 3.12", "MMSR1_PYTHON"):
        assert how in done.stderr
    assert not (checkout / ".venv" / "bin").exists()


def test_a_named_python_that_does_not_run_is_refused(checkout: Path, tmp_path: Path) -> None:
    done = env_sh(checkout, tmp_path, MMSR1_PYTHON="/no/such/python")
    assert done.returncode == 1 and "MMSR1_PYTHON=/no/such/python is not a Python 3.12" in done.stderr


def test_a_python_under_pyenv_is_found_behind_a_shim_that_refuses(checkout: Path, tmp_path: Path) -> None:
    under = tmp_path / "home" / ".pyenv" / "versions" / "3.12.99" / "bin"
    under.mkdir(parents=True)
    python = under / "python3.12"
    # It runs, and it stops at the first thing that an installation would do: that is enough to know that it was chosen.
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\necho "asked for: $*" >&2\nexit 9\n')
    python.chmod(0o755)
    done = env_sh(checkout, tmp_path)
    assert f"making {checkout}/.venv with {python}" in done.stderr
    assert "asked for: -m venv" in done.stderr


def test_an_environment_from_this_lock_is_reused_at_once(checkout: Path, tmp_path: Path) -> None:
    venv = tmp_path / "shared"
    stamp(venv, checkout)
    done = env_sh(checkout, tmp_path, MMSR1_VENV=str(venv))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{venv}\n", "")


def test_an_environment_from_another_lock_is_refused(checkout: Path, tmp_path: Path) -> None:
    venv = tmp_path / "shared"
    stamp(venv, checkout)
    (checkout / "requirements.lock").write_text("numpy==2.0.0\n")
    done = env_sh(checkout, tmp_path, MMSR1_VENV=str(venv))
    assert done.returncode == 1 and f"MMSR1_VENV={venv} was made from another requirements.lock" in done.stderr


@pytest.mark.parametrize("script", ["env.sh", "quickstart.sh", "cold_start.sh"])
def test_unknown_arguments_are_2(script: str) -> None:
    done = subprocess.run([ROOT / "scripts" / script, "--frm-scratch"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage:" in done.stderr


@pytest.mark.parametrize("script", sorted([*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci" / "run"]), ids=lambda p: p.name)
def test_scripts_are_strict_and_executable(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n") and "set -euo pipefail" in script.read_text()
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
