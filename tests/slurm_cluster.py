"""A real Slurm of two nodes with eight GPUs each, on this machine: its own munged, slurmctld and two slurmd, its own ports.

It needs root (slurmd starts the jobs, mknod makes what stands for GPUs) and, where Slurm is not installed, apt-get. Nothing is
skipped where one of them is missing: whoever asked for these tests is told why they cannot run.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_mmsr1.procs.ports import free_port
from megatron_mmsr1.procs.service import Command, Service

NODES, GPUS = ("n1", "n2"), 8
PACKAGES = ("slurm-wlm", "slurm-client", "munge")
PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "DEADLINE"}

# A job waits for nothing but nodes, and an end is quick; the rest is what a machine without accounting and cgroups can do.
CONFIG = """\
ClusterName=mmsr1-tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={home}/jobcomp.txt
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=5
MinJobAge=3600
GresTypes=gpu
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=4000 Gres=gpu:h100:{gpus}"


@dataclass(frozen=True, slots=True)
class Cluster:
    """`env`: what Slurm's commands need to find it. `daemons`: by name (munged, slurmctld, n1, n2)."""

    home: Path
    env: dict[str, str]
    daemons: dict[str, Service]

    def run(
        self, *argv: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command that finds this Slurm, to its end."""
        return subprocess.run(
            [str(a) for a in argv],
            env=os.environ | self.env | (env or {}),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def show(self, job: str) -> dict[str, str]:
        """What scontrol says of a job."""
        done = self.run("scontrol", "show", "job", "-o", job)
        assert done.returncode == 0, f"scontrol ended with {done.returncode}: {done.stdout}{done.stderr}"
        return dict(re.findall(r"(\w+)=(.*?)(?= \w+=|$)", done.stdout.splitlines()[0]))

    def until(self, job: str, *states: str, within_s: float = 120) -> dict[str, str]:
        """Wait until the job is in one of these states. Fails where it ends in another one, or does not come to it."""
        end = time.monotonic() + within_s
        while (found := self.show(job))["JobState"] not in states:
            if found["JobState"] in OVER or time.monotonic() > end:
                log = Path(found.get("StdOut", "").replace("%j", job).replace("%%", "%"))
                said = log.read_text() if log.is_file() else ""
                pytest.fail(f"job {job} is {found['JobState']} ({found['Reason']}), not {' or '.join(states)}:\n{said[-4000:]}")
            time.sleep(0.2)
        return found

    def start_now(self, job: str) -> None:
        """A requeued job would wait for two minutes. That is for a reason: the end of its last life, told late by a node, is
        taken for that of the new one. So this first waits until nothing of the last life runs."""
        number = self.show(job)["JobId"]
        end = time.monotonic() + 60
        while any(words.startswith(f"slurmstepd: [{number}.") for words in _command_lines()):
            assert time.monotonic() < end, f"job {job} was requeued, and a step of its last life runs on"
            time.sleep(0.1)
        done = self.run("scontrol", "update", f"JobId={job}", "StartTime=now")
        assert done.returncode == 0, done.stderr


def _command_lines() -> Iterator[str]:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            yield file.read_bytes().replace(b"\0", b" ").decode(errors="replace")


def install() -> None:
    """Slurm's packages from the distribution, unless its programs are there. Fails with the reason."""
    if os.geteuid() != 0:
        pytest.fail("a Slurm of our own needs root: its nodes start jobs, and its GPUs are made by mknod")
    if not [p for p in PROGRAMS if shutil.which(p) is None]:
        return
    if shutil.which("apt-get") is None:
        pytest.fail("Slurm is not installed, and there is no apt-get to install it with")
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for argv in (("apt-get", "update", "-q"), ("apt-get", "install", "-y", "-q", "--no-install-recommends", *PACKAGES)):
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode:
            pytest.fail(f"Slurm is not installed, and {' '.join(argv)} failed: {(done.stdout + done.stderr)[-1000:]}")


@contextmanager
def started() -> Iterator[Cluster]:
    """Both nodes idle; at the end every job is killed and every daemon ended."""
    install()
    # Not pytest's directory: the path of a Unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="mmsr1-slurm-") as directory, ExitStack() as stack:
        home = Path(directory)
        env = _configure(home)
        daemons: dict[str, Service] = {}
        cluster = Cluster(home, env, daemons)

        def start(name: str, argv: Sequence[str | Path], ready: Sequence[str]) -> None:
            command = Command(
                name=name,
                argv=[str(a) for a in argv],
                log=home / f"{name}.log",
                url=name,
                env=env,
                ready=lambda _: _says(cluster, ready),
                grace_s=20,
            )
            daemons[name] = stack.enter_context(Service(command).start())

        key, munge = home / "munge.key", home / "munge.socket"
        files = [f"--{n}-file={home}/munge.{n}" for n in ("pid", "seed", "log")]
        start(
            "munged",
            ("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}", *files),
            ("munge", "-n", "-S", str(munge)),
        )
        config = home / "slurm.conf"
        start("slurmctld", ("slurmctld", "-D", "-c", "-f", config), ("scontrol", "ping", "UP"))
        for node in NODES:
            start(node, ("slurmd", "-D", "-c", "-N", node, "-f", config), ("sinfo", "-h", "-n", node, "-o", "%t", "idle"))
        yield cluster
        cluster.run("scancel", "--user=root", "--signal=KILL", "--full")
        cluster.run("scancel", "--user=root")
        end = time.monotonic() + 60
        while cluster.run("squeue", "-h").stdout and time.monotonic() < end:
            time.sleep(0.2)


def _says(cluster: Cluster, ready: Sequence[str]) -> bool:
    """Whether a command succeeds; of the last word of Slurm's own commands, whether they say it."""
    argv, word = (ready, "") if ready[0] == "munge" else (ready[:-1], ready[-1])
    done = cluster.run(*argv)
    return done.returncode == 0 and word in done.stdout


def _configure(home: Path) -> dict[str, str]:
    home.chmod(0o755)
    host = socket.gethostname().split(".")[0]
    (home / "munge.key").write_bytes(os.urandom(128))
    (home / "munge.key").chmod(0o600)
    (home / "dev").mkdir()
    for name in ("state", *(f"spool-{n}" for n in NODES)):
        (home / name).mkdir()
    for i in range(GPUS):  # character devices of a driver that is not asked anything
        os.mknod(home / "dev" / f"nvidia{i}", stat.S_IFCHR | 0o600, os.makedev(195, i))
    ports = set[int]()
    while len(ports) < 1 + len(NODES):
        ports.add(free_port())
    controller, *own = ports
    nodes = "\n".join(NODE.format(name=n, host=host, port=p, gpus=GPUS) for n, p in zip(NODES, own, strict=True))
    config = CONFIG.format(host=host, port=controller, home=home, nodes=nodes, names=",".join(NODES))
    (home / "slurm.conf").write_text(config)
    gres = f"Name=gpu Type=h100 File={home}/dev/nvidia[0-{GPUS - 1}] Flags=nvidia_gpu_env"
    (home / "gres.conf").write_text("AutoDetect=off\n" + "".join(f"NodeName={n} {gres}\n" for n in NODES))
    (home / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    return {"SLURM_CONF": str(home / "slurm.conf")}
