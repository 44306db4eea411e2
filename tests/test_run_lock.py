"""One trainer a run directory: a living holder is refused by name, a dead one is followed, and of several one wins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.run import lock
from megatron_mmsr1.run.lock import STALE_S, Holder, RunLock, read


def leave(directory: Path, holder: Holder, *, age_s: float = 0.0) -> Path:
    """A lock file as a holder of long ago left it."""
    path = directory / lock.NAME
    path.write_text(json.dumps(asdict(holder)))
    at = time.time() - age_s
    os.utime(path, (at, at))
    return path


def test_a_second_trainer_is_refused_with_the_first_ones_name(tmp_path: Path) -> None:
    with RunLock(tmp_path, "mmsr1 train"), pytest.raises(RunError) as refused, RunLock(tmp_path, "mmsr1 sft"):
        pass
    said = str(refused.value)
    assert f"process {os.getpid()}" in said and "mmsr1 train" in said and "another output=" in said
    assert os.uname().nodename in said


def test_the_lock_goes_with_its_holder(tmp_path: Path) -> None:
    for _ in range(2):
        with RunLock(tmp_path, "mmsr1 train") as held:
            assert read(held.path) == held.holder
        assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_is_followed_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from megatron_mmsr1.run.lock import RunLock\n"
        "with RunLock(Path(sys.argv[1]), 'mmsr1 train'): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match=f"process {other.pid}"), RunLock(tmp_path, "mmsr1 train"):
            pass
        other.kill()
    assert (tmp_path / lock.NAME).exists()
    with RunLock(tmp_path, "mmsr1 train") as held:
        assert read(held.path) == held.holder


def test_a_process_id_that_is_used_again_is_not_the_holder(tmp_path: Path) -> None:
    leave(tmp_path, replace(Holder.me("mmsr1 train"), born="1"))
    with RunLock(tmp_path, "mmsr1 train"):
        pass


def test_another_machine_is_judged_by_its_last_sign_of_life(tmp_path: Path) -> None:
    there = replace(Holder.me("mmsr1 train"), host="node17", machine="node17/boot")
    leave(tmp_path, there, age_s=STALE_S / 2)
    with pytest.raises(RunError, match="node17"), RunLock(tmp_path, "mmsr1 train"):
        pass
    leave(tmp_path, there, age_s=STALE_S * 2)
    with RunLock(tmp_path, "mmsr1 train"):
        pass


def test_of_many_that_take_over_one_succeeds(tmp_path: Path) -> None:
    """Each round leaves a dead holder's lock to eight at once; one that wins holds on until all have tried."""
    for round_ in range(20):
        directory = tmp_path / str(round_)
        directory.mkdir()
        leave(directory, replace(Holder.me("mmsr1 train"), born="1"))

        def try_once(_: int, directory: Path = directory) -> RunLock | None:
            try:
                return RunLock(directory, "mmsr1 train").__enter__()
            except RunError:
                return None

        with ThreadPoolExecutor(8) as pool:
            won = [held for held in pool.map(try_once, range(8)) if held is not None]
        assert len(won) == 1
        assert read(won[0].path) == won[0].holder
        won[0].__exit__(None, None, None)
        assert list(directory.iterdir()) == []


def test_one_that_died_while_it_took_over_is_followed_too(tmp_path: Path) -> None:
    """A dead holder, and a claim on it by a process that died before it could put its own lock in its place."""
    first, second = (replace(Holder.me("mmsr1 train"), born="1") for _ in range(2))
    path = leave(tmp_path, first)
    path.with_name(f".lock.after.{first.token}").write_text(json.dumps(asdict(second)))
    with RunLock(tmp_path, "mmsr1 train") as held:
        assert read(path) == held.holder
    assert list(tmp_path.iterdir()) == []


def test_who_lost_the_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_S", 0.01)
    with RunLock(tmp_path, "mmsr1 train") as held:
        held.check()
        other = replace(Holder.me("mmsr1 train"), host="node17")
        leave(tmp_path, other)
        held._renewal.join()
        with pytest.raises(RunError, match="node17"):
            held.check()
    assert read(tmp_path / lock.NAME) == other  # what is not ours stays


def test_a_damaged_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / lock.NAME).write_text("{")
    with pytest.raises(RunError, match=r"lock\.json"), RunLock(tmp_path, "mmsr1 train"):
        pass


def test_ranks_of_a_launcher_use_its_lock_and_others_take_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunLock(tmp_path, "mmsr1 train") as held:
        monkeypatch.setenv(lock.TOKEN, held.holder.token)
        with lock.lock_of_ranks(tmp_path) as mine:
            assert mine is None
        monkeypatch.setenv(lock.TOKEN, "another")
        with pytest.raises(RunError), lock.lock_of_ranks(tmp_path):
            pass
    monkeypatch.delenv(lock.TOKEN)
    with lock.lock_of_ranks(tmp_path) as mine:
        assert mine is not None
    monkeypatch.setenv("RANK", "1")
    with lock.lock_of_ranks(tmp_path) as mine:
        assert mine is None
