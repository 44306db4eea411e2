"""Complete or not at all: files and directories under exceptions and SIGKILL."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.data import files


# --------------------------------------------------------------------------------------------------------------------- files
@given(before=st.none() | st.binary(), after=st.binary(), sync=st.booleans())
def test_a_file_is_replaced_whole(tmp_path_factory: pytest.TempPathFactory, before: bytes | None, after: bytes, sync: bool):
    path = tmp_path_factory.mktemp("f") / "sub" / "file"
    if before is not None:
        files.write_bytes(path, before)
    files.write_bytes(path, after, sync=sync)
    assert path.read_bytes() == after and os.listdir(path.parent) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_writer_that_fails_changes_nothing(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(ZeroDivisionError), files.replacing(path) as f:
        f.write(b"half")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ([] if before is None else ["file"])
    assert before is None or path.read_bytes() == before


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError), files.unfinished(path) as part:
        part.unlink()
        part.symlink_to("/dev/full")
        part.write_bytes(b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


# --------------------------------------------------------------------------------------------------------------- directories
def fill(part: Path, version: int) -> None:
    """Two files that agree, one of them in a subdirectory."""
    (part / "sub").mkdir()
    (part / "a").write_text(str(version))
    (part / "sub" / "b").write_text(str(version))


def version(target: Path) -> int:
    """Of a whole directory; AssertionError for a mixture."""
    a, b = (target / "a").read_text(), (target / "sub" / "b").read_text()
    assert a == b and sorted(os.listdir(target)) == ["a", "sub"]
    return int(a)


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for n in range(3):
        with files.building(target) as part:
            fill(part, n)
        assert version(target) == n and os.listdir(tmp_path) == ["model"]
    with pytest.raises(ZeroDivisionError), files.building(target) as part:
        fill(part, 9)
        raise ZeroDivisionError
    assert version(target) == 2 and os.listdir(tmp_path) == ["model"]


def test_there_is_no_moment_without_it(tmp_path: Path) -> None:
    """A reader that asks all the while always finds the directory. (Removing it first, then renaming, fails this at once.)"""
    target = tmp_path / "model"
    with files.building(target) as part:
        fill(part, 0)
    done = threading.Event()
    missing: list[int] = []

    def read() -> None:
        while not done.is_set():
            if not os.path.isdir(target):
                missing.append(1)

    thread = threading.Thread(target=read)
    thread.start()
    for n in range(300):
        with files.building(target, sync=False) as part:
            fill(part, n)
    done.set()
    thread.join()
    assert not missing


WRITER = """
import sys
from pathlib import Path
from megatron_mmsr1.data import files
target = Path(sys.argv[1])
if sys.argv[2] == "renames":
    files.exchange = lambda a, b: False
n = int(sys.argv[3])
print("go", flush=True)
while True:
    n += 1
    with files.building(target, sync=False) as part:
        (part / "sub").mkdir()
        (part / "a").write_text(str(n))
        (part / "sub" / "b").write_text(str(n))
"""


@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_killed_at_any_moment_a_whole_directory_is_there(tmp_path: Path, how: str) -> None:
    """Where two names cannot be exchanged, `restore` must have run first, as it does before the next replacement."""
    target = tmp_path / "model"
    rng = random.Random(0)
    seen = 0
    for _ in range(12):
        command = [sys.executable, "-c", WRITER, str(target), how, str(seen)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            until = time.monotonic() + 60
            while not target.exists() and time.monotonic() < until:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))
            writer.send_signal(signal.SIGKILL)
        if how == "renames":
            files.restore(target)
        assert version(target) >= seen
        seen = version(target)
    assert seen > 0


def test_without_exchange_it_is_said_and_a_cut_short_replacement_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "model"
    with files.building(target) as part:
        fill(part, 1)
    monkeypatch.setattr(files, "exchange", lambda a, b: False)
    with files.building(target) as part:
        fill(part, 2)
    assert "cannot exchange" in caplog.text and version(target) == 2 and os.listdir(tmp_path) == ["model"]
    target.rename(tmp_path / ".model.old")  # killed between the two renames
    files.restore(target)
    assert version(target) == 2 and "put back" in caplog.text


def test_exchange_tells_what_it_cannot_do_from_what_went_wrong(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError):
        files.exchange(tmp_path / "a", tmp_path / "none")
