"""Who can reach the stores of trainer and engine: nobody but this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from megatron_mmsr1.procs.guard import descendants
from megatron_mmsr1.procs.ports import free_port

LOOPBACK = {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1 and ::1 as /proc/net writes them
RANK = """
import os, torch.distributed as dist
dist.init_process_group("gloo")
dist.barrier()
if dist.get_rank() == 0:
    print("ready", os.getppid(), flush=True)
    import sys; sys.stdin.readline()
dist.barrier()
"""


def listening(root: int) -> set[str]:
    """Local addresses (as /proc/net has them, without the port) on which `root` or a process below it listens."""
    inodes = set()
    for pid in [root, *descendants(root)]:
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(str(fd.readlink()))
            except FileNotFoundError:
                continue
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in Path(table).read_text().splitlines()[1:]:
            columns = row.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in inodes:
                found.add(columns[1].partition(":")[0])
    return found


def ranks(module: str, script: Path) -> set[str]:
    """Where two gloo ranks and their agent listen."""
    argv = [sys.executable, "-m", module, "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    argv += ["--master-port", str(free_port()), str(script)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_lo(), text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline().startswith("ready")
        return listening(process.pid)
    finally:
        process.stdin.close()
        process.wait(60)


def _lo() -> dict[str, str]:
    import os

    return {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


def test_the_ranks_listen_on_loopback_alone(tmp_path: Path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    assert ranks("megatron_mmsr1.procs.torchrun", script) <= LOOPBACK


def test_a_store_shares_its_server_and_serves_clients():
    code = """
from megatron_mmsr1.procs import bound_store
bound_store.install()
from torch.distributed import TCPStore
a = TCPStore("127.0.0.1", 0, is_master=True, multi_tenant=True)
b = TCPStore("127.0.0.1", a.port, is_master=False)
c = TCPStore("127.0.0.1", a.port, is_master=True, multi_tenant=True, wait_for_workers=False)
a.set("k", "v")
print(b.get("k"), c.get("k"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["b'v'", "b'v'"], done.stderr
