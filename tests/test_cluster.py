"""Nodes of a job: real supervisors as processes on this machine; what they start, tell and leave. No Slurm."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from process_fixtures import alive, until

from megatron_mmsr1.cluster.head import Head, RemoteNode
from megatron_mmsr1.cluster.nodes import NAMED
from megatron_mmsr1.cluster.wire import HEAD, TOKEN, Line, Lost
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.procs.machine import Spawn
from megatron_mmsr1.procs.ports import free_port
from megatron_mmsr1.procs.service import Command, Service

SECRET = "0123456789abcdef0123"


def node(port: int, name: str, step: str = "trainer", secret: str = SECRET) -> subprocess.Popen[bytes]:
    env = {**os.environ, HEAD: f"127.0.0.1:{port}", TOKEN: secret, "SLURMD_NODENAME": name, NAMED: f"{name}=127.0.0.1=0"}
    return subprocess.Popen(
        [sys.executable, "-m", "megatron_mmsr1.cli", "node", "--step", step], env=env, stderr=subprocess.PIPE
    )


@pytest.fixture
def job() -> Iterator[tuple[Head, RemoteNode, subprocess.Popen[bytes]]]:
    port = free_port()
    with Head("127.0.0.1", port, SECRET) as head:
        process = node(port, "n1")
        head.wait_for([("trainer", ["n1"])], 60)
        yield head, head.nodes["trainer", "n1"], process
    process.wait(30)


def sh(tmp_path: Path, code: str, **options: object) -> Spawn:
    return Spawn(name="it", argv=["bash", "-c", code], log=tmp_path / "log", grace_s=2, **options)  # type: ignore[arg-type]


def test_a_command_on_another_node(job: tuple[Head, RemoteNode, object], tmp_path: Path) -> None:
    _, remote, _ = job
    process, _ = remote.launch(
        sh(tmp_path, 'echo "$X $MMSR1_JOB_TOKEN$MMSR1_HEAD"; pwd; exit 3', env={"X": "here"}, cwd=tmp_path)
    )
    assert process.returncode == 3 and process.ended
    assert (tmp_path / "log").read_text().splitlines() == ["here ", str(tmp_path)]  # the job's secret goes no further
    assert "ended with exit code 3" in process.describe_end() and str(tmp_path) in process.describe_end()


def test_it_ends_when_it_is_told_to(job: tuple[Head, RemoteNode, object], tmp_path: Path) -> None:
    _, remote, _ = job
    process, _ = remote.launch(sh(tmp_path, "sleep 300 & wait"))
    assert alive(process.pid) and not process.ended
    process.end()
    assert process.returncode == 143 and not alive(process.pid)


def test_a_socket_is_bound_there(job: tuple[Head, RemoteNode, object], tmp_path: Path) -> None:
    _, remote, _ = job
    code = "import socket, sys; s = socket.socket(fileno=int(sys.argv[2])); s.listen(); s.accept()[0].sendall(b'hello')"
    command = Command(
        name="it", argv=[sys.executable, "-c", code], log=tmp_path / "log", listen=("127.0.0.1", 0), machine=remote, grace_s=1
    )
    with Service(command).start() as service:
        host, _, port = service.url.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as s:
            assert s.recv(5) == b"hello"


def test_what_cannot_be_started_is_said(job: tuple[Head, RemoteNode, object], tmp_path: Path) -> None:
    _, remote, _ = job
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="node n1"):
        remote.launch(sh(tmp_path / "file", "true"))
    process, _ = remote.launch(Spawn(name="it", argv=["no-such-command"], log=tmp_path / "log"))
    assert process.returncode == 127


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_supervisor_that_ends_takes_everything_with_it(
    job: tuple[Head, RemoteNode, subprocess.Popen[bytes]], tmp_path: Path, how: signal.Signals
) -> None:
    head, remote, supervisor = job
    process, _ = remote.launch(sh(tmp_path, "sleep 300 & echo $! >pid; wait", cwd=tmp_path))
    until(lambda: (tmp_path / "pid").is_file() and bool((tmp_path / "pid").read_text().strip()))
    grandchild = int((tmp_path / "pid").read_text())
    supervisor.send_signal(how)
    until(lambda: process.ended)
    until(lambda: not alive(process.pid) and not alive(grandchild))
    if how is signal.SIGKILL:
        assert process.returncode == 255 and "lost" in process.describe_end()
    until(lambda: bool(remote.lost))
    with pytest.raises(RunError, match=r"node n1 \(step trainer: .*\) is lost"):
        head.check()
    with pytest.raises(RunError, match="is lost"):
        remote.launch(sh(tmp_path, "true"))


def test_nothing_is_left_when_the_head_ends(tmp_path: Path) -> None:
    port = free_port()
    with Head("127.0.0.1", port, SECRET) as head:
        first, second = node(port, "n1"), node(port, "n2", "engines")
        head.wait_for([("trainer", ["n1"]), ("engines", ["n2"])], 60)
        left = [n.launch(sh(tmp_path, "sleep 300"))[0] for n in head.nodes.values()]
    assert [first.wait(30), second.wait(30)] == [0, 0]
    assert not any(alive(p.pid) for p in left)


def test_a_head_that_is_killed_takes_the_nodes_with_it(tmp_path: Path) -> None:
    port = free_port()
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom megatron_mmsr1.cluster.head import Head\n"
        "from megatron_mmsr1.procs.machine import Spawn\n"
        f"head = Head('127.0.0.1', {port}, {SECRET!r}); head.wait_for([('trainer', ['n1'])], 60)\n"
        "d = Path(sys.argv[1])\n"
        "p, _ = head.nodes['trainer', 'n1'].launch(Spawn(name='it', argv=['sleep', '300'], log=d / 'log', grace_s=1))\n"
        "(d / 'pid').write_text(str(p.pid)); time.sleep(300)"
    )
    head = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    supervisor = node(port, "n1")
    until(lambda: (tmp_path / "pid").is_file() and bool((tmp_path / "pid").read_text()))
    pid = int((tmp_path / "pid").read_text())
    head.kill()
    head.wait()
    assert supervisor.wait(30) == 1
    assert supervisor.stderr is not None and b"the job's first process is lost" in supervisor.stderr.read()
    assert not alive(pid)


def test_who_does_not_know_the_token_joins_nothing() -> None:
    port = free_port()
    with Head("127.0.0.1", port, SECRET) as head:
        stranger = node(port, "n1", secret="another-secret-of-20")
        assert stranger.wait(30) == 1
        assert stranger.stderr is not None and b"does not know this job's token" in stranger.stderr.read()
        with socket.create_connection(("127.0.0.1", port)) as s:  # nor who speaks something else, or only repeats
            s.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert s.recv(1000) == b""
        with socket.create_connection(("127.0.0.1", port)) as s:
            line = Line(s)
            line.send({"what": "nonce", "nonce": "x"})
            challenge = line.receive()
            line.send({"what": "hello", "proof": challenge["proof"], "who": {"node": "n1", "step": "trainer", "address": "x"}})
            with pytest.raises(Lost):
                line.receive()
        until(lambda: head.refused == 3)
        with pytest.raises(RunError, match=r"1 of 1 nodes have not joined: n1 \(step trainer\)"):
            head.wait_for([("trainer", ["n1"])], 0.1)


def test_a_supervisor_obeys_nobody_who_does_not_know_the_token() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        supervisor = node(s.getsockname()[1], "n1")
        conn, _ = s.accept()
        with conn:
            line = Line(conn)
            line.receive()
            line.send({"what": "nonce", "nonce": "y", "proof": "0" * 64})
            assert supervisor.wait(30) == 1
