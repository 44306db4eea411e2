"""A watched service: what ends or hangs is started again, how often, and what a person is told. Real processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from process_fixtures import command, server, until

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.procs.http import answers
from megatron_mmsr1.procs.ports import free_port
from megatron_mmsr1.procs.service import RestartPolicy, Service

QUICK = RestartPolicy(pause_s=0.01, tries=3)


def kill(s: Service) -> None:
    """The command itself, not its guard."""
    os.kill(s.child.command_pid, signal.SIGKILL)


def test_what_ends_is_started_again_at_the_same_url_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    with Service(server(tmp_path, free_port()), restart=QUICK).watch(said.append) as s:
        for n in range(1, 3):
            until(lambda: s.up)
            kill(s)
            until(lambda n=n: s.restarts == n and len(said) == 2 * n)
        until(lambda: s.up)
        assert answers(s.url)
        assert "SIGKILL" in said[0] and "(1)" in said[0] and s.url in said[1]
        s.check()
    assert not s.up and s.failed is None and s.child.ended


def test_one_that_hangs_is_replaced(tmp_path: Path) -> None:
    """Its process lives and its port is open; only nothing answers any more."""
    said: list[str] = []
    probes = {"alive": lambda url: answers(url, timeout_s=0.2), "alive_every_s": 0.05, "hung_after_s": 0.5}
    with Service(server(tmp_path, free_port(), **probes), restart=QUICK).watch(said.append) as s:
        until(lambda: s.up)
        first = s.child.pid
        (tmp_path / "hung").touch()
        until(lambda: s.restarts == 1)
        (tmp_path / "hung").unlink()
        until(lambda: s.up)
        assert s.child.pid != first and answers(s.url)
        assert "has not answered" in said[0]


def test_an_unwatched_one_that_hangs_is_an_error(tmp_path: Path) -> None:
    probes = {"alive": lambda url: answers(url, timeout_s=0.2), "alive_every_s": 0.05, "hung_after_s": 0.3}
    with Service(server(tmp_path, free_port(), **probes)).start() as s:
        s.check()
        (tmp_path / "hung").touch()

        def hung() -> bool:
            try:
                s.check()
            except Exception as e:
                return "has not answered" in str(e)
            return False

        until(hung)


def test_after_too_many_starts_in_a_row_it_has_failed(tmp_path: Path) -> None:
    with Service(server(tmp_path, free_port()), restart=QUICK).watch(lambda _: None) as s:
        until(lambda: s.up)
        (tmp_path / "broken").touch()
        kill(s)
        until(lambda: s.failed is not None)
        assert s.restarts == QUICK.tries and "it does not start" in str(s.failed) and not s.up
        with pytest.raises(Exception, match="3 times in a row"):
            s.check()


def test_one_that_was_well_for_long_is_counted_anew(tmp_path: Path) -> None:
    policy = RestartPolicy(pause_s=0.01, tries=2, steady_s=0.0)
    with Service(server(tmp_path, free_port()), restart=policy).watch(lambda _: None) as s:
        for n in range(1, policy.tries + 3):
            until(lambda: s.up)
            kill(s)
            until(lambda n=n: s.restarts == n)
        until(lambda: s.up)
        assert s.failed is None


def test_a_first_start_that_fails_is_not_repeated(tmp_path: Path) -> None:
    refused = command("echo go >>ran; exit 2", tmp_path / "log", cwd=tmp_path, ready=lambda _: False, refusal="no such flag")
    with Service(refused).watch(lambda _: None) as s:
        until(lambda: s.failed is not None)
        assert isinstance(s.failed, UsageError) and (tmp_path / "ran").read_text() == "go\n"


def test_a_start_that_is_no_longer_wanted(tmp_path: Path) -> None:
    (tmp_path / "down").touch()
    with Service(server(tmp_path, free_port())).watch(lambda _: None) as s:
        until((tmp_path / "server.log").exists)
    assert s.failed is None and not s.up and s.child.ended


def test_one_that_was_started_in_the_foreground_may_be_watched_from_then_on(tmp_path: Path) -> None:
    with Service(server(tmp_path, free_port()), restart=QUICK).start().watch(lambda _: None) as s:
        kill(s)
        until(lambda: s.restarts == 1 and s.up)


def test_pauses_double_up_to_a_bound() -> None:
    policy = RestartPolicy(pause_s=1.0, max_pause_s=5.0)
    assert [policy.pause(n) for n in range(1, 7)] == [0.0, 1.0, 2.0, 4.0, 5.0, 5.0]
