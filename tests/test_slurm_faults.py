"""GRPO on Atlas on a real Slurm with a rank on each of two nodes: the numbers of a run without Slurm, whatever dies meanwhile.

./scripts/test.sh --slow tests/test_slurm_faults.py
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from loop_fixtures import ROOT, metrics, mmsr1, settings
from slurm_cluster import Cluster

from megatron_mmsr1.rollout.dump import read_dump
from megatron_mmsr1.run.directory import checkpointed_step

pytestmark = pytest.mark.slow
WITHIN_S = 900.0
STEPS = 7
SAME = ("loss", "reward/mean", "tokens", "search/share", "grad_norm")
LAYOUTS = {"TP2": 2, "DP2": 1}  # tensor-parallel sizes of two ranks
SLURM = [sys.executable, "-m", "megatron_mmsr1.cli", "slurm"]


def overrides(world: Path, out: Path, layout: str, steps: int) -> list[str]:
    """One thread a rank: as many as a node has cores would round in another order."""
    more = [f"megatron.tensor_parallel={LAYOUTS[layout]}", "train.threads_per_rank=1", f"train.steps={steps}"]
    return settings(world, out, *more, "train.ranks=2", "train.save_interval=1", "data.heldout=[]")


class Job:
    """A submitted run: a rank on each node, the engine and the search server on the first."""

    def __init__(self, slurm: Cluster, world: Path, out: Path, layout: str, steps: int, *more: str) -> None:
        self.slurm, self.out = slurm, out
        settings = [*overrides(world, out, layout, steps), "placement.trainer.nodes=2", "slurm.cpus_per_node=2", *more]
        done = slurm.run(*SLURM, "submit", ROOT / "configs/atlas.yaml", *settings, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        self.id = done.stdout.strip()

    @property
    def log(self) -> str:
        file = self.out / "slurm" / "001" / f"{self.id}.log"
        return file.read_text() if file.is_file() else ""

    def processes(self, *words: str, node: str = "") -> list[psutil.Process]:
        """Those of this run whose command line has all of `words`; on one node, or on any."""
        found = []
        for p in psutil.process_iter():
            try:
                line = " ".join(p.cmdline())
                mine = p.environ().get("SLURM_JOB_ID") == self.id and (not node or p.environ()["SLURMD_NODENAME"] == node)
                if mine and p.status() != psutil.STATUS_ZOMBIE and all(w in line for w in words):
                    found.append(p)
            except psutil.Error:  # it ended meanwhile
                continue
        return found

    def rank(self, node: str) -> psutil.Process:
        """The rank of a node: the one process under torchrun that computes."""
        (found,) = [p for p in self.processes("megatron_mmsr1.train", node=node) if is_rank(p)]
        return found

    def until(self, what: Callable[[], object], said: str) -> None:
        end = time.monotonic() + WITHIN_S
        while not what():
            state = self.slurm.show(self.id)["JobState"]
            if state not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED") or time.monotonic() > end:
                pytest.fail(f"job {self.id} is {state}, and not {said}:\n{self.log[-6000:]}")
            time.sleep(0.2)

    def until_steps(self, n: int) -> None:
        """Until so many steps are done, and the last one's checkpoint written."""
        self.until(lambda: checkpointed_step(self.out) >= n, f"at step {n}")

    def until_requeued(self, restarts: int) -> None:
        """In the queue again, and nothing of its last life left."""
        self.until(lambda: self.slurm.show(self.id)["Restarts"] == str(restarts), f"requeued {restarts} times")
        self.slurm.until(self.id, "PENDING", within_s=WITHIN_S)
        self.gone()
        self.slurm.start_now(self.id)

    def gone(self) -> None:
        end = time.monotonic() + 60
        while left := self.processes():
            assert time.monotonic() < end, f"left: {[p.cmdline() for p in left]}"
            time.sleep(0.2)


def listening(connections: Any) -> set[int]:
    return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}


def is_rank(process: psutil.Process) -> bool:
    return "RANK" in process.environ() and "torchrun" not in " ".join(process.cmdline())


@pytest.fixture(scope="module")
def undisturbed(atlas_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of a layout without Slurm, made once."""
    made: dict[str, Path] = {}

    def run(layout: str) -> Path:
        if layout not in made:
            made[layout] = tmp_path_factory.mktemp("undisturbed") / layout
            steps = STEPS if layout == "TP2" else 2
            done = mmsr1("train", "configs/atlas.yaml", *overrides(atlas_world, made[layout], layout, steps))
            assert done.returncode == 0, done.stderr[-3000:]
        return made[layout]

    return run


@pytest.fixture
def free_nodes(slurm: Cluster) -> Iterator[None]:
    yield
    slurm.run("scancel", "--user=root")
    slurm.run("scontrol", "update", "NodeName=n1,n2", "State=RESUME")


def same(one: Path, two: Path, steps: int) -> None:
    """The same prompts and tokens, rewards and losses, at each step."""
    first, second = metrics(one)[:steps], metrics(two)
    assert [r["step"] for r in second] == list(range(steps))
    for a, b in zip(first, second, strict=True):
        assert {k: a.get(k) for k in SAME} == pytest.approx({k: b.get(k) for k in SAME}, rel=1e-5, abs=1e-7), a["step"]
    for step in range(steps):
        a, b = (read_dump(out / "rollouts", step)[0] for out in (one, two))
        assert [(t.prompt_id, t.token_ids) for t in a] == [(t.prompt_id, t.token_ids) for t in b]


def same_weights(one: Path, two: Path) -> None:
    import torch
    from safetensors.torch import load_file

    a, b = (load_file(out / "model" / "model.safetensors") for out in (one, two))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.usefixtures("free_nodes")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_on_both_nodes_compute_what_they_do_without_slurm(
    slurm: Cluster, atlas_world: Path, undisturbed: Callable[[str], Path], layout: str, tmp_path: Path
) -> None:
    job = Job(slurm, atlas_world, tmp_path / "run", layout, 2)
    job.until_steps(1)
    assert {p.environ()["SLURMD_NODENAME"] for p in (job.rank("n1"), job.rank("n2"))} == {"n1", "n2"}
    slurm.until(job.id, "COMPLETED", within_s=WITHIN_S)
    same(undisturbed(layout), job.out, 2)
    job.gone()


@pytest.mark.usefixtures("free_nodes")
def test_whatever_dies_the_run_ends_in_the_same_weights(
    slurm: Cluster, atlas_world: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    job = Job(slurm, atlas_world, out, "TP2", STEPS, "placement.hung_after_s=150")

    job.until_steps(1)
    job.rank("n2").send_signal(signal.SIGKILL)
    job.until_requeued(1)

    job.until_steps(2)
    engines = job.processes(str(out / "logs" / "engine-0"))
    assert engines
    for p in engines:
        p.kill()  # it is started again where it was, and the job with it goes on
    job.until_steps(3)
    assert slurm.show(job.id)["Restarts"] == "1"

    (supervisor,) = [p for p in job.processes("node", "--step", "trainer", node="n2") if "srun" not in p.name()]
    supervisor.kill()
    job.until_requeued(2)

    job.until_steps(4)
    assert slurm.run("scontrol", "requeue", job.id).returncode == 0
    job.until_requeued(3)

    job.until_steps(5)
    assert slurm.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test").returncode == 0
    job.until(lambda: slurm.show(job.id)["Restarts"] == "4", "requeued from a node that is down")
    slurm.run("scontrol", "update", "NodeName=n2", "State=RESUME")  # refused where the node has come back by itself

    job.until_steps(6)
    job.rank("n2").send_signal(signal.SIGSTOP)
    job.until_requeued(5)
    assert "no rank has gone on for 150 s (placement.hung_after_s): rank 1" in job.log

    slurm.until(job.id, "COMPLETED", within_s=WITHIN_S)
    job.gone()
    same(undisturbed("TP2"), out, STEPS)
    same_weights(undisturbed("TP2"), out)
    lives = [json.loads(line) for line in (out / "lives.jsonl").read_text().splitlines()]
    assert all(life["to"] > life["from"] for life in lives)


@pytest.mark.usefixtures("free_nodes")
@pytest.mark.parametrize("how", ["scancel", "kill the head"])
def test_a_job_that_is_stopped_leaves_no_process_and_no_port(
    slurm: Cluster, atlas_world: Path, how: str, tmp_path: Path
) -> None:
    job = Job(slurm, atlas_world, tmp_path / "run", "TP2", 50)
    job.until_steps(1)
    ports = {port for p in job.processes() for port in listening(p.net_connections())}
    assert len(ports) >= 3  # engine, search server, rendezvous
    if how == "scancel":
        assert slurm.run("scancel", job.id).returncode == 0
        slurm.until(job.id, "CANCELLED", within_s=WITHIN_S)
    else:
        head = int(next((job.out / "slurm" / "001").glob("*.head.pid")).read_text())
        psutil.Process(head).kill()
        slurm.until(job.id, "FAILED", within_s=WITHIN_S)
    job.gone()
    assert not ports & listening(psutil.net_connections("tcp"))
