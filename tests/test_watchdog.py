"""A rank that hangs is named with its phase and stack; lives that come to nothing are not repeated. Real processes stopped."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from process_fixtures import until

from megatron_mmsr1.cluster import rendezvous
from megatron_mmsr1.errors import Interrupted, RunError, UsageError
from megatron_mmsr1.procs.child import Child
from megatron_mmsr1.procs.stacks import of_ranks, state
from megatron_mmsr1.run.lives import FILE, Lives
from megatron_mmsr1.run.phases import Phases, clear, read
from megatron_mmsr1.run.torchrun import RanksDied
from megatron_mmsr1.run.watchdog import Watchdog

# Two ranks below one process, each with a child of its own, as a rollout worker is.
RANKS = """
import os, subprocess, sys, time
if os.environ.get("LEVEL"):
    def waits_for_somebody():
        if os.environ["LEVEL"] == "1":
            subprocess.Popen([sys.executable, __file__], env={**os.environ, "LEVEL": "2"})
            open(f"up{os.environ['RANK']}", "w").close()
        time.sleep(300)
    waits_for_somebody()
for rank in "01":
    subprocess.Popen([sys.executable, __file__], env={**os.environ, "RANK": rank, "LEVEL": "1"})
time.sleep(300)
"""


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Child]:
    (tmp_path / "ranks.py").write_text(RANKS)
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "LEVEL")}
    child = Child("ranks", [sys.executable, "ranks.py"], log=tmp_path / "log", env=env, cwd=tmp_path, grace_s=0.5)
    until(lambda: all((tmp_path / f"up{r}").exists() for r in (0, 1)))
    yield child
    child.end()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_ranks_below_a_process_with_their_stacks(ranks: Child) -> None:
    found = ranks.ranks()
    assert [r.rank for r in found] == [0, 1]  # not what they started themselves
    assert all("waits_for_somebody" in r.stack for r in found)
    os.kill(found[1].pid, signal.SIGSTOP)
    until(lambda: state(found[1].pid) == "T")
    stopped = of_ranks(ranks.pid)[1]
    assert stopped.state == "T" and "waits_for_somebody" in stopped.stack and "is stopped" in str(stopped)


def test_a_stopped_rank_is_named(tmp_path: Path, ranks: Child) -> None:
    (tmp_path / "logs").mkdir()
    clock = Clock()
    watch = Watchdog(tmp_path, 60, clock=clock)
    for rank in (0, 1):
        Phases(tmp_path, rank).enter("training", 3)
    pid = ranks.ranks()[1].pid
    os.kill(pid, signal.SIGSTOP)
    for clock.now in (10, 20, 69):
        watch([ranks])
    clock.now = 71
    with pytest.raises(RanksDied, match=rf"rank 1 in training of step 3 \(rank 1 \(process {pid}\) is stopped\)") as e:
        watch([ranks])
    assert "rank 0" not in str(e.value)
    stacks = next((tmp_path / "logs").glob("hung-*.txt")).read_text()
    assert stacks.count("waits_for_somebody") == 2 and "rank 0" in stacks
    ranks.end()  # a stopped process ends too


def test_who_is_furthest_behind_is_named(tmp_path: Path, ranks: Child) -> None:
    (tmp_path / "logs").mkdir()
    clock = Clock()
    watch = Watchdog(tmp_path, 60, clock=clock)
    first, second = Phases(tmp_path, 0), Phases(tmp_path, 1)
    for phases in (first, second):
        phases.enter("rollout", 7)
    first.enter("training", 7)
    for clock.now in (1, 30):
        watch([ranks])
    clock.now = 62
    with pytest.raises(RanksDied, match=r": rank 1 in rollout of step 7"):
        watch([ranks])


def test_who_goes_on_is_left_alone(tmp_path: Path) -> None:
    clock = Clock()
    watch = Watchdog(tmp_path, 60, clock=clock)
    phases = Phases(tmp_path, 0)
    for i in range(10):
        clock.now += 50
        phases.enter("rollout", i)
        watch([])
    assert read(tmp_path)[0].order == 10
    clear(tmp_path)
    assert read(tmp_path) == {}


def test_two_lives_without_a_step_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter([0, 0, 4, 4, 4, 9, 9])
    monkeypatch.setattr("megatron_mmsr1.run.lives.checkpointed_step", lambda _: next(steps))
    lives = Lives(tmp_path, 1)
    lives.died(Interrupted("a rank was killed\nmore"))  # 0 -> 0
    lives.died(Interrupted("again"))  # 0 -> 4: it came to something
    lives.died(Interrupted("again"))  # 4 -> 4
    with pytest.raises(RunError, match="2 lives of this run in a row ended at step 4 without a step: not again") as e:
        lives.died(Interrupted("again"))
    assert not isinstance(e.value, Interrupted)
    lives.died(Interrupted("by hand"))  # 4 -> 9
    assert [lives.again(), lives.again()] == [True, False]
    rows = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [(r["from"], r["to"]) for r in rows] == [(0, 0), (0, 4), (4, 4), (4, 4), (4, 9)]
    assert rows[0]["how"] == "a rank was killed"


def test_a_rank_of_srun_is_told_like_one_of_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\n[ $2 = hostnames ] && printf 'localhost\\nother\\n'\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    step = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77"}
    env = step | {"SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "n[1-2]"}
    assert rendezvous.adopt(env)
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"], env["MASTER_ADDR"]) == ("3", "4", "1", "127.0.0.1")
    assert 20000 <= int(env["MASTER_PORT"]) < 32000
    told = {"RANK": "0", **step}
    assert not rendezvous.adopt(told) and told["RANK"] == "0"  # torchrun inside a step
    assert not rendezvous.adopt({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"})  # the job's own script
    with pytest.raises(UsageError, match="SLURM_STEP_NODELIST"):
        rendezvous.adopt(dict(step))


def test_the_interface_of_an_address() -> None:
    assert rendezvous.interface_of("127.0.0.1") == "lo" and rendezvous.interface_of("192.0.2.1") is None
    env: dict[str, str] = {}
    rendezvous.listen_at("127.0.0.1", env)
    assert env == {"GLOO_SOCKET_IFNAME": "lo"}
