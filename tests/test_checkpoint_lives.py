"""Runs that are killed, or meet a full disk, while they write checkpoints: there is always a whole one to go on from, nothing
is trained twice, and the weights at the end are those of a run that nobody disturbed. Real ranks, real kills, a file system
that is really full (`checkpoint_lives.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoint_lives import STEPS

HERE = Path(__file__).parent
# A file system of one's own needs to be root, or a kernel that lets a user be root in a namespace.
OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")


def lives(root: Path, what: str, n: int, seed: int = 0, *, mounts: bool = False) -> list[dict[str, Any]]:
    if (
        mounts
        and subprocess.run([*OWN_MOUNTS, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this machine lets nobody mount a small file system")
    command = [sys.executable, str(HERE / "checkpoint_lives.py"), str(root), what, str(n), str(seed)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}:{HERE}"}
    done = subprocess.run([*OWN_MOUNTS, *command] if mounts else command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((root / "found.json").read_text())


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def ended_alike(run: Path, whole: Path, steps: int = STEPS) -> None:
    """The same losses in the same order, each step once, and the same weights, bit by bit."""
    one, two = rows(whole), rows(run)
    assert [r["step"] for r in two] == list(range(steps))
    for name in ("loss", "grad_norm", "lr", "loss_tokens"):
        assert [r[name] for r in one] == [r[name] for r in two], name
    a, b = ((r / "model" / "model.safetensors").read_bytes() for r in (whole, run))
    assert a == b


def killed(root: Path, n: int, seed: int) -> None:
    found = lives(root, "kill", n, seed)
    assert sum(f["killed"] for f in found) == n
    done = 0
    for life in found:
        assert life["step"] >= done, "a kill never takes back a step"
        done = 0 if life["codes"] == [0, 0] else life["step"]
        if life["killed"]:  # what is logged is at most what was done since, and is cut when it is done again
            assert life["rows"] >= life["step"]
        else:
            assert life["step"] == STEPS and life["left"] == [], "what kills left behind is removed"
            ended_alike(root / life["run"], root / "whole")


@pytest.mark.timeout(1200)
def test_two_kills_while_saving(tmp_path: Path) -> None:
    killed(tmp_path, 2, int.from_bytes(os.urandom(4)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_while_saving(tmp_path: Path) -> None:
    killed(tmp_path, 20, int.from_bytes(os.urandom(4)))


def refused(root: Path, n: int, seed: int) -> None:
    """Every second checkpoint, `n` in all: the one before is whole and the latest each time, and the room comes back."""
    steps = max(STEPS, 2 * n)
    found = lives(root, "full", n, seed, mounts=True)
    *after, end = found
    assert [f["step"] for f in after] == list(range(0, 2 * n, 2)), "an odd step's checkpoint is refused"
    assert all(f["left"] == [] for f in found) and end["step"] == steps
    said = (root / "upset_1" / "run.log").read_text()
    assert said.count("was not written: rank") == n and said.count("No space left on device") == n
    assert said.count("alarm checkpoint begins") == 1 and said.count("The run goes on") == n
    ended_alike(root / "upset_1", root / "longer", steps)


@pytest.mark.timeout(1200)
def test_a_full_disk_while_saving(tmp_path: Path) -> None:
    refused(tmp_path, 3, int.from_bytes(os.urandom(4)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_full_disk_twenty_times(tmp_path: Path) -> None:
    refused(tmp_path, 20, int.from_bytes(os.urandom(4)))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_disk_that_stays_full_ends_the_run_which_goes_on_once_there_is_room(tmp_path: Path) -> None:
    first, second = lives(tmp_path, "stop", 2, mounts=True)
    assert 1 in first["codes"] and first["step"] == 2 and first["left"] == []
    said = (tmp_path / "ranks.log").read_text()
    assert "3 checkpoints in a row were not written, more than train.checkpoint_failures=2" in said
    assert "the same command resumes from step_000002" in said
    assert second["codes"] == [0, 0] and second["step"] == STEPS
    ended_alike(tmp_path / "upset_1", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_slow_disk_is_said_once_and_keeps_the_order(tmp_path: Path) -> None:
    (end,) = lives(tmp_path, "slow", 0)
    said = (tmp_path / "upset_1" / "run.log").read_text()
    assert said.count("the disk is slow: the checkpoint step_") == 1
    names = [line.split()[3] for line in said.splitlines() if "is written:" in line]
    assert names == [f"step_{s:06d}" for s in range(1, STEPS + 1)] and end["step"] == STEPS
    ended_alike(tmp_path / "upset_1", tmp_path / "whole")
