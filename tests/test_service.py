"""A service: nothing outlives it, whatever ends it; what it says when it cannot start or ends. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from process_fixtures import FAMILY, alive, command, family, server, until

from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.procs.child import tail
from megatron_mmsr1.procs.ports import free_port, port_is_free
from megatron_mmsr1.procs.service import Command, Service, wait_all
from megatron_mmsr1.procs.signals import Terminated, exit_on_signals


# ------------------------------------------------------------------------------------------------------- nothing is left
def test_leaving_the_block_stops_the_whole_family(tmp_path: Path) -> None:
    with Service(command(FAMILY.format(d=tmp_path), tmp_path / "log", grace_s=2)).start() as s:
        pids = family(tmp_path)
        assert all(alive(p) for p in pids) and s.up
    assert not any(alive(p) for p in [*pids, s.child.pid]) and not s.up


def test_one_that_ignores_term_is_killed_after_the_grace_time(tmp_path: Path) -> None:
    code = (
        f"import signal,time; signal.signal(15, signal.SIG_IGN); open({str(tmp_path / 'up')!r}, 'w').close(); time.sleep(300)"
    )
    argv = [sys.executable, "-c", code]
    with Service(Command(name="stubborn", argv=argv, log=tmp_path / "log", cwd=tmp_path, grace_s=0.2)).start() as s:
        until((tmp_path / "up").exists)
    assert not alive(s.child.pid)


# A shell's background job starts with SIGINT ignored, and so would a test run that is one.
OWNER = """
import signal, sys, time
from pathlib import Path
from megatron_mmsr1.procs.service import Command, Service, wait_all
from megatron_mmsr1.procs.signals import exit_on_signals
signal.signal(signal.SIGINT, signal.default_int_handler)
d = Path(sys.argv[1])
with exit_on_signals(), Service(Command(name="family", argv=["bash", "-c", sys.argv[2]], log=d / "log", grace_s=2)).start():
    time.sleep(300)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_however_the_owner_ends_nothing_is_left(tmp_path: Path, number: signal.Signals, code: int) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), FAMILY.format(d=tmp_path)], stderr=subprocess.DEVNULL
    )
    pids = family(tmp_path)
    parent.send_signal(number)
    assert parent.wait(60) == code
    until(lambda: not any(alive(p) for p in pids))


def test_a_killed_guard_leaves_no_group(tmp_path: Path) -> None:
    with Service(command("sleep 300 & echo $! >a; wait", tmp_path / "log", cwd=tmp_path, grace_s=1)).start() as s:
        until(lambda: (tmp_path / "a").is_file() and bool((tmp_path / "a").read_text().strip()))
        grandchild = int((tmp_path / "a").read_text())
        os.kill(s.child.pid, signal.SIGKILL)
        until(lambda: s.child.ended)
        with pytest.raises(RunError, match="SIGKILL"):
            s.check()
    assert not alive(grandchild)  # and not some time later: its port is free for who comes next


def test_a_failed_start_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "down").touch()
    s = Service(server(tmp_path, free_port(), ready_within_s=0.5, ready_setting="engine.startup_timeout_s"))
    with pytest.raises(RunError, match=r"engine\.startup_timeout_s=0\.5"):
        s.start()
    assert s.child.ended and not s.up


ENDS_LATE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(float(sys.argv[1])), sys.exit(7)))
open("up", "w").close()
while True:  # a signal between a look and a pause would be slept through
    time.sleep(0.01)
"""


def test_the_exit_code_is_the_commands_whenever_it_ends(tmp_path: Path) -> None:
    """The guard looks every 20 ms: an end between two of its system calls is told like any other."""
    for turn in range(40):
        (tmp_path / "up").unlink(missing_ok=True)
        argv = [sys.executable, "-I", "-S", "-c", ENDS_LATE, str(turn * 0.0005)]
        with Service(Command(name="late", argv=argv, log=tmp_path / "log", cwd=tmp_path)).start() as s:
            until((tmp_path / "up").exists)
        assert s.child.returncode == 7


def test_several_stop_beside_each_other(tmp_path: Path) -> None:
    """Each takes half a second to end. One after the other, the last would still be up when the first is gone."""
    script = "trap 'sleep 0.5; date +%s%N >>ended; exit 0' TERM; touch up.$$; while :; do sleep 0.02; done"
    services = [Service(command(script, tmp_path / "log", cwd=tmp_path)).start() for _ in range(3)]
    until(lambda: len(list(tmp_path.glob("up.*"))) == 3)
    asked = time.time_ns()
    for s in services:
        s.ask_to_stop()
    for s in services:
        s.stop()
    ends = sorted(int(n) for n in (tmp_path / "ended").read_text().split())
    assert len(ends) == 3 and all(s.child.ended for s in services)
    # the spread of the ends is smaller than the time that a single one takes: they overlapped
    assert ends[-1] - ends[0] < ends[0] - asked


def test_sigterm_becomes_an_exit_only_inside_the_block() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated) as e, exit_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert e.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


# -------------------------------------------------------------------------------------------------------- what it says
def test_an_end_is_an_error_with_the_last_lines(tmp_path: Path) -> None:
    with Service(command("echo out of memory; exit 3", tmp_path / "engine.log", name="engine")).start() as s:
        until(lambda: s.child.ended)
        with pytest.raises(RunError, match=r"engine ended with exit code 3(.|\n)*engine\.log(.|\n)*out of memory"):
            s.check()


def test_an_end_before_it_is_ready(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with pytest.raises(RunError, match=r"it ended with exit code 1(.|\n)*it does not start"):
        Service(server(tmp_path, free_port())).start()


def test_exit_code_2_is_the_persons_error_where_the_command_says_so(tmp_path: Path) -> None:
    refused = command("echo no such flag; exit 2", tmp_path / "log", ready=lambda _: False, refusal="it refuses its arguments")
    with pytest.raises(UsageError, match=r"it refuses its arguments(.|\n)*no such flag"):
        Service(refused).start()


def test_death_by_signal_is_named(tmp_path: Path) -> None:
    with Service(command("kill -SEGV $$", tmp_path / "log")).start() as s:
        until(lambda: s.child.ended)
        with pytest.raises(RunError, match="ended by SIGSEGV"):
            s.check()


def test_a_command_that_does_not_exist_says_so(tmp_path: Path) -> None:
    with Service(Command(name="ghost", argv=["/no/such/program"], log=tmp_path / "log")).start() as s:
        until(lambda: s.child.ended)
        with pytest.raises(RunError, match="cannot start /no/such/program"):
            s.check()


def test_ready_and_the_port_is_free_again(tmp_path: Path) -> None:
    port = free_port()
    waited: list[float] = []
    with Service(server(tmp_path, port)).start(waited.append) as s:
        s.check()
        assert not port_is_free(port) and s.started_s > 0
    assert port_is_free(port)


def test_a_job_is_waited_for_while_others_are_checked(tmp_path: Path) -> None:
    with Service(command("sleep 300", tmp_path / "server.log", name="server")).start() as other:
        polls: list[int] = []
        wait_all([Service(command("exit 0", tmp_path / "job.log")).start()], poll=lambda: polls.append(1))
        assert polls
        with Service(command("sleep 300", tmp_path / "job.log")).start() as job:
            os.kill(other.child.pid, signal.SIGTERM)
            with pytest.raises(RunError, match="server"):
                wait_all([job], poll=other.check)


def test_environment_and_append(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for value in ("one", "two"):
        wait_all([Service(command("echo $WORD ${HOME-none}", log, env={"WORD": value}, without=("HOME",))).start()])
    assert log.read_text() == "one none\ntwo none\n"


def test_tail_reads_only_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {i}\n" for i in range(10000)))
    assert tail(log, 2) == "  line 9998\n  line 9999"
    assert tail(tmp_path / "none") == "  (no log)"


# ------------------------------------------------------------------------------------------------------ an inherited socket
HEIR = """
import socket, sys
with socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1])) as s:
    s.listen()
    while True:
        with s.accept()[0] as c:
            c.recv(4096)
            c.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 0\\r\\n\\r\\n")
"""


def test_a_socket_is_bound_here_and_inherited(tmp_path: Path) -> None:
    """Nobody can take the port between its choice and the server's start, and it is closed when the server ends."""
    from megatron_mmsr1.procs.http import answers

    argv = [sys.executable, "-c", HEIR]
    heir = Command(name="heir", argv=argv, log=tmp_path / "log", listen=("127.0.0.1", 0), ready=answers)
    with Service(heir).start() as s:
        port = int(s.url.rpartition(":")[2])
        assert answers(s.url) and not port_is_free(port)
        with pytest.raises(RunError, match=f"port {port} on 127.0.0.1"):
            Service(Command(name="other", argv=argv, log=tmp_path / "log", listen=("127.0.0.1", port))).start()
    assert port_is_free(port)


# ------------------------------------------------------------------------------------------------------- temporary files
@pytest.mark.parametrize("how", ["stop", "kill", "owner"])
def test_its_temporary_files_go_with_it(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it makes where temporary files go, and the shared memory that it has mapped, however it ends."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    name = f"mmsr1_test_{os.getpid()}_{how}"
    code = (
        "import mmap, os, tempfile, time; from multiprocessing import shared_memory, resource_tracker\n"
        f"shm = shared_memory.SharedMemory({name!r}, create=True, size=4096)\n"
        "resource_tracker.unregister(shm._name, 'shared_memory')\n"
        "tempfile.mkdtemp(); tempfile.mkstemp(); open('up', 'w').close(); time.sleep(300)"
    )
    it = Command(name="it", argv=[sys.executable, "-c", code], log=tmp_path / "log", cwd=tmp_path, shared=("mmsr1_test_",))
    with Service(it).start() as s:
        until((tmp_path / "up").exists)
        made = os.listdir(temporary)
        assert len(made) == 1 and len(os.listdir(temporary / made[0])) == 2 and Path("/dev/shm", name).exists()
        if how == "kill":
            os.kill(s.child.command_pid, signal.SIGKILL)
            until(lambda: s.child.ended)
        elif how == "owner":
            s.child.ask_to_end()  # what the guard sees when this process dies
            until(lambda: s.child.ended)
    assert os.listdir(temporary) == []
    if how != "kill":  # of what is gone at once nobody can say what it had mapped
        assert not Path("/dev/shm", name).exists()
    Path("/dev/shm", name).unlink(missing_ok=True)
