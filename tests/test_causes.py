"""Why a process ended: what a full disk, a lack of memory and a plain kill are told as. Real processes, real full devices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from process_fixtures import command, until

from megatron_mmsr1.errors import AGAIN, REPORT, Interrupted, RunError, full_disk, is_full_disk, left_by_child
from megatron_mmsr1.procs.causes import cause, error_in, is_full, memory_kills
from megatron_mmsr1.procs.ports import free_port
from megatron_mmsr1.procs.service import Command, Service

WRITES = "open('/dev/full', 'w').write('x' * 100_000)"


def ended(script: list[str], tmp_path: Path) -> str:
    with Service(Command(name="ranks", argv=script, log=tmp_path / "log")).start() as s:
        until(lambda: s.child.ended)
        with pytest.raises(RunError) as e:
            s.check()
    return str(e.value)


def test_a_full_disk_is_told_as_one_not_as_a_kill(tmp_path: Path) -> None:
    said = ended([sys.executable, "-c", WRITES], tmp_path)
    assert "is full" in said and "make room" in said and "memory" not in said


def test_a_kill_is_told_as_one_where_the_kernel_counts_no_lack_of_memory(tmp_path: Path) -> None:
    said = ended(["bash", "-c", "kill -9 $$"], tmp_path)
    assert "SIGKILL" in said and "kill -9" in said and "full" not in said


def test_lack_of_memory_is_what_the_kernel_counted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    assert "for lack of memory" in cause(137, log, memory_kills() - 1)
    assert cause(1, log, memory_kills()) == ""


ON_A_FULL_DISK = """
import sys
from pathlib import Path
from megatron_mmsr1.procs.causes import cause, error_in, is_full, memory_kills
here = Path(sys.argv[1])
assert not is_full(here)
try:
    (here / "big").write_bytes(bytes(8 << 20))
except OSError as e:
    pass
assert is_full(here)
print(cause(1, here / "log", memory_kills()))
"""


def test_the_disk_of_the_log_is_looked_at(tmp_path: Path) -> None:
    """A file system of 4 MiB, in a mount namespace of its own. What fills it could not even write why it died."""
    script = f'mount -t tmpfs -o size=4m none {tmp_path} && exec "$0" "$@"'
    argv = ["unshare", "-rm", "bash", "-c", script, sys.executable, "-c", ON_A_FULL_DISK, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr or "unshare failed" in done.stderr:
        pytest.skip("no mount namespaces here")
    assert done.returncode == 0, done.stderr
    assert f"disk that holds {tmp_path} is full" in done.stdout
    assert not is_full(tmp_path)


RANK = """
import os
from megatron_mmsr1.errors import exit_with_message
def main():
    {0}
exit_with_message(main)
"""


def test_a_rank_that_meets_a_full_disk_says_so(tmp_path: Path) -> None:
    report = tmp_path / "failure.json"
    env = {**os.environ, "MMSR1_FAILURE": str(report), "RANK": "1"}
    done = subprocess.run([sys.executable, "-c", RANK.format(WRITES)], env=env, capture_output=True, text=True, check=False)
    said = left_by_child(report)
    assert done.returncode == 1 and isinstance(said, RunError)
    assert "rank 1" in str(said) and "disk is full" in str(said) and "should not" not in str(said)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(122, "Disk quota exceeded"), True),
        (RuntimeError("PytorchStreamWriter failed writing file data/3: No space left on device"), True),
        (OSError(13, "Permission denied"), False),
        (ValueError("x"), False),
    ],
)
def test_errors_of_a_full_disk_whoever_raises_them(error: BaseException, full: bool) -> None:
    assert is_full_disk(error) is full
    assert "make room" in full_disk(error)


def test_a_signal_sent_to_the_guard_ends_the_command(tmp_path: Path) -> None:
    with Service(command("sleep 300", tmp_path / "log")).start() as s:
        os.kill(s.child.pid, signal.SIGTERM)
        until(lambda: s.child.ended)
        with pytest.raises(RunError, match="SIGTERM"):
            s.check()


LOST = """
import subprocess, sys
print("a line before")
try:
    {}["a"]
except KeyError as e:
    try:
        raise ValueError("engine.x: what a person can mend") from e
    finally:
        pass
"""


def test_the_error_of_a_log_is_the_first_one_that_was_raised_to_the_end(tmp_path: Path) -> None:
    """A real traceback of two chained errors after a logger's words; then that of another process, which died of the first."""
    log = tmp_path / "log"
    log.write_text("Traceback (most recent call last):\n  a start before\nOldError: gone\n")
    start = log.stat().st_size
    with log.open("ab", buffering=0) as out:
        out.write(b"[2026-01-01 00:00:00] Scheduler hit an exception: ")
        for code in (LOST, "raise RuntimeError('Rank 0 scheduler died')"):
            subprocess.run([sys.executable, "-c", code], stderr=out, stdout=subprocess.DEVNULL, check=False)
    assert error_in(log, start) == "ValueError: engine.x: what a person can mend"
    assert error_in(log) == "OldError: gone"
    assert error_in(log, log.stat().st_size) == ""


def test_a_start_that_ends_in_a_traceback_is_told_by_its_last_line(tmp_path: Path) -> None:
    broken = Command(name="it", argv=[sys.executable, "-c", LOST], log=tmp_path / "log", ready=lambda _: False)
    with pytest.raises(RunError) as e:
        Service(broken).start()
    assert str(e.value) == f"it did not start: ValueError: engine.x: what a person can mend (its log: {tmp_path / 'log'})"


PEER = """
import os
import torch
import torch.distributed as dist
from megatron_mmsr1.errors import exit_with_message

def main():
    dist.init_process_group("gloo")
    dist.all_reduce(torch.ones(1))
    if dist.get_rank() == 1:
        os.kill(os.getpid(), 9)
    while True:
        dist.all_reduce(torch.ones(1))

exit_with_message(main)
"""


def test_the_rank_that_is_left_says_that_another_is_gone(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    env |= {"GLOO_SOCKET_IFNAME": "lo", REPORT: str(report)}
    ranks = [subprocess.Popen([sys.executable, "-c", PEER], env=env | {"RANK": str(i)}) for i in range(2)]
    assert [r.wait(timeout=300) for r in ranks] == [AGAIN, -signal.SIGKILL]
    said = left_by_child(report)
    assert isinstance(said, Interrupted) and "rank 0 lost another rank" in str(said)
