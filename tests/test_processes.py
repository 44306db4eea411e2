"""Supervised processes: nothing outlives the supervisor, whatever ends it. Real processes throughout."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.procs.supervisor import Supervisor, Terminated, free_port, port_is_free, require_port, tail

# A family of three: a shell, a grandchild in its group, and one in a session of its own (as torchrun's workers are).
FAMILY = "sleep 300 & echo $! >{d}/a; setsid sleep 300 & echo $! >{d}/b; echo $$ >{d}/main; wait"


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must come; the bound only ends a broken test."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def family(d: Path) -> list[int]:
    until(lambda: all((d / n).is_file() and (d / n).read_text().strip() for n in ("a", "b", "main")))
    return [int((d / n).read_text()) for n in ("a", "b", "main")]


def test_leaving_the_block_stops_the_whole_family(tmp_path: Path) -> None:
    with Supervisor(grace_s=2) as s:
        child = s.start("family", ["bash", "-c", FAMILY.format(d=tmp_path)], log=tmp_path / "log")
        pids = family(tmp_path)
        assert all(alive(p) for p in pids)
    assert not any(alive(p) for p in [*pids, child.pid])


def test_a_child_that_ignores_term_is_killed_after_the_grace_time(tmp_path: Path) -> None:
    code = (
        f"import signal,time; signal.signal(15, signal.SIG_IGN); open({str(tmp_path / 'up')!r}, 'w').close(); time.sleep(300)"
    )
    with Supervisor(grace_s=0.2) as s:
        child = s.start("stubborn", [sys.executable, "-c", code], log=tmp_path / "log", cwd=tmp_path)
        until((tmp_path / "up").exists)
    assert not alive(child.pid)


def test_death_of_a_child_is_an_error_with_its_last_lines(tmp_path: Path) -> None:
    with Supervisor(grace_s=1) as s:
        child = s.start("engine", ["bash", "-c", "echo out of memory; exit 3"], log=tmp_path / "engine.log")
        child.process.wait()
        with pytest.raises(RunError, match=r"engine ended with exit code 3(.|\n)*engine\.log(.|\n)*out of memory"):
            s.check()
        with pytest.raises(RunError, match="out of memory"):
            s.wait_healthy("engine", f"http://127.0.0.1:{free_port()}/", deadline_s=60)


def test_death_by_signal_is_named(tmp_path: Path) -> None:
    with Supervisor(grace_s=1) as s:
        child = s.start("victim", ["bash", "-c", "kill -SEGV $$"], log=tmp_path / "log")
        child.process.wait()
        with pytest.raises(RunError, match="ended by SIGSEGV"):
            s.check()


def test_a_command_that_does_not_exist_says_so(tmp_path: Path) -> None:
    with Supervisor(grace_s=1) as s:
        s.start("ghost", ["/no/such/program"], log=tmp_path / "log").process.wait()
        with pytest.raises(RunError, match="cannot start /no/such/program"):
            s.check()


def test_wait_returns_at_a_clean_end_and_raises_when_another_child_dies(tmp_path: Path) -> None:
    with Supervisor(grace_s=1) as s:
        s.start("server", ["sleep", "300"], log=tmp_path / "server.log")
        s.start("job", ["bash", "-c", "exit 0"], log=tmp_path / "job.log")
        polls: list[int] = []
        s.wait("job", poll=lambda: polls.append(1))
        assert polls
        s.start("job", ["sleep", "300"], log=tmp_path / "job.log")
        os.kill(s.children["server"].pid, signal.SIGTERM)
        with pytest.raises(RunError, match="server"):
            s.wait("job")


def test_healthy_server_and_deadline(tmp_path: Path) -> None:
    port = free_port()
    with Supervisor(grace_s=1) as s:
        s.start(
            "web",
            [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
            log=tmp_path / "web.log",
            cwd=tmp_path,
        )
        s.wait_healthy("web", f"http://127.0.0.1:{port}/", deadline_s=60)
        with pytest.raises(RunError, match=r"did not become healthy(.|\n)*HTTP 404"):
            s.wait_healthy("web", f"http://127.0.0.1:{port}/missing", deadline_s=0.5)
    assert port_is_free(port)


def test_environment_and_append(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Supervisor() as s:
        for value in ("one", "two"):
            s.start("echo", ["bash", "-c", "echo $WORD"], log=log, env={"WORD": value})
            s.wait("echo")
    assert log.read_text() == "one\ntwo\n"


# A shell's background job starts with SIGINT ignored, and so would a test run that is one.
SUPERVISE = """
import signal, sys, time
from pathlib import Path
from megatron_mmsr1.procs.supervisor import Supervisor
signal.signal(signal.SIGINT, signal.default_int_handler)
d = Path(sys.argv[1])
with Supervisor(grace_s=2) as s:
    s.start("family", ["bash", "-c", sys.argv[2]], log=d / "log")
    time.sleep(300)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_however_the_supervisor_ends_nothing_is_left(tmp_path: Path, number: signal.Signals, code: int) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, str(tmp_path), FAMILY.format(d=tmp_path)], stderr=subprocess.DEVNULL
    )
    pids = family(tmp_path)
    parent.send_signal(number)
    assert parent.wait(60) == code
    until(lambda: not any(alive(p) for p in pids))


def test_a_killed_guard_leaves_no_group(tmp_path: Path) -> None:
    with Supervisor(grace_s=1) as s:
        child = s.start("family", ["bash", "-c", "sleep 300 & echo $! >a; wait"], log=tmp_path / "log", cwd=tmp_path)
        until(lambda: (tmp_path / "a").is_file() and bool((tmp_path / "a").read_text().strip()))
        grandchild = int((tmp_path / "a").read_text())
        os.kill(child.pid, signal.SIGKILL)
        until(lambda: child.process.poll() is not None)
        with pytest.raises(RunError, match="SIGKILL"):
            s.check()
    until(lambda: not alive(grandchild))


def test_sigterm_becomes_an_exit_only_inside_the_block() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated) as e, Supervisor():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert e.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_ports() -> None:
    port = free_port()
    assert 20000 <= port < 32000
    with socket.socket() as s:
        s.bind(("127.0.0.1", port))
        s.listen()
        assert not port_is_free(port)
        with pytest.raises(RunError, match=f"port {port} for the engine is taken"):
            require_port(port, "the engine")
    assert require_port(port, "the engine") == port


def test_tail_reads_only_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {i}\n" for i in range(10000)))
    assert tail(log, 2) == "  line 9998\n  line 9999"
    assert tail(tmp_path / "none") == "  (no log)"
