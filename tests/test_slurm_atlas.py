"""GRPO on Atlas as a job of two nodes of a real Slurm: ranks on the first, an engine on the second, told to stop and requeued.

./scripts/test.sh --slow tests/test_slurm_atlas.py
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest
from loop_fixtures import ROOT, metrics, settings
from slurm_cluster import Cluster

pytestmark = pytest.mark.slow
WITHIN_S = 1200.0


def lines_until(log: Path, slurm: Cluster, job: str, said: str) -> str:
    """The job's log once it says so. Fails with it where the job ends before."""
    end = time.monotonic() + WITHIN_S
    while not (log.is_file() and re.search(said, log.read_text())):
        state = slurm.show(job)["JobState"]
        if state not in ("PENDING", "CONFIGURING", "RUNNING") or time.monotonic() > end:
            pytest.fail(f"job {job} is {state} and never said {said}:\n{log.read_text()[-4000:] if log.is_file() else ''}")
        time.sleep(0.5)
    return log.read_text()


def test_grpo_on_two_nodes_stops_before_its_limit_goes_on_and_is_evaluated(
    slurm: Cluster, atlas_world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    overrides = settings(atlas_world, out, "train.steps=4", "train.eval_limit=6", "train.save_interval=50")
    overrides += ["placement={trainer: {nodes: 1}, engines: {nodes: 1, count: 1}}", "slurm.cpus_per_node=2"]
    argv = [sys.executable, "-m", "megatron_mmsr1.cli", "slurm"]
    done = slurm.run(*argv, "submit", ROOT / "configs/atlas.yaml", *overrides, "--then", "eval,export", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    train, evaluation, export = done.stdout.split()
    assert slurm.show(train)["NumNodes"] in ("2", "2-2")  # once it runs, and while it waits
    log = out / "slurm" / "001" / f"{train}.log"
    lines_until(log, slurm, train, r"GRPO 1/4")
    assert slurm.run("scancel", "--batch", "--signal=USR1", train).returncode == 0
    slurm.until(train, "PENDING", within_s=WITHIN_S)
    first = metrics(out)
    # Before four steps were done, and with a checkpoint that only the signal can have asked for.
    assert 1 <= len(first) < 4 and (out / "checkpoints" / f"step_{len(first):06}").is_dir()
    slurm.start_now(train)
    slurm.until(train, "COMPLETED", within_s=WITHIN_S)
    rows = metrics(out)
    assert [r["step"] for r in rows] == [0, 1, 2, 3] and rows[: len(first)] == first
    agents = {p.name for p in (out / "slurm" / "001").glob(f"{train}.*.*.log")}
    assert agents == {f"{train}.{life}.{step}.log" for life in (0, 1) for step in ("trainer.n1", "engines.n2")}
    assert {p.name for p in (out / "logs").glob("engine*.log")} == {"engine-0.n2.log", "engine-0.n2.r1.log"}
    slurm.until(export, "COMPLETED", within_s=WITHIN_S)
    keys = [json.loads((out / "eval" / f"{name}.json").read_text())["meta"]["key"] for name in ("model", "after")]
    assert keys[0]["weights"] == keys[1]["weights"]  # the job evaluated what the run had left
    assert (tmp_path / "run-export" / "config.json").is_file() and (tmp_path / "run-export" / "serving.yaml").is_file()
    said = slurm.run(*argv, "status", out, cwd=ROOT).stdout
    assert re.search(rf"^{train} +train +COMPLETED +restarts 1  step 4/4$", said, re.MULTILINE), said
    assert len(re.findall("COMPLETED", said)) == 3 and evaluation in said
