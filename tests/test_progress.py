"""Progress: one line a step where there is no terminal, a bar where there is one, another process's steps through its file."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import struct
import termios
from pathlib import Path

import pytest

from megatron_mmsr1.procs.progress import Follower, duration, progress


def test_one_line_a_step_with_the_time_left() -> None:
    out = io.StringIO()
    with progress("GRPO", 3, stream=out) as p:
        for i in range(3):
            p.step(loss=0.123456, reward=i)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("GRPO 1/3  ") and "ETA" in lines[0] and lines[0].endswith("loss 0.1235  reward 0")
    assert lines[2].startswith("GRPO 3/3  ") and "ETA 0s" in lines[2]


def test_lines_may_be_spaced_but_the_last_one_stands() -> None:
    out = io.StringIO()
    with progress("SFT", 50, every_s=3600, stream=out) as p:
        for _ in range(50):
            p.step()
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["1/50", "50/50"]


def test_a_resumed_run_counts_on() -> None:
    out = io.StringIO()
    with progress("GRPO", 10, done=7, stream=out) as p:
        p.step()
    assert out.getvalue().startswith("GRPO 8/10")


def all_shown(master: int) -> str:
    """Everything that was written to a terminal whose other side is closed: one read may return less than all of it."""
    shown = b""
    with os.fdopen(master, "rb", buffering=0) as f:
        while True:
            try:
                part = f.read(65536)
            except OSError:  # EIO: how Linux says that a terminal's other side has gone
                return shown.decode()
            if not part:
                return shown.decode()
            shown += part


def test_a_bar_on_a_terminal() -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal, progress("GRPO", 2, stream=terminal) as p:
        p.step(loss=1.5)
        p.step(loss=0.5)
    shown = all_shown(master)
    assert "2/2" in shown and "loss 0.5" in shown


def line(step: int, **values: float | None) -> str:
    return json.dumps({"step": step, **values}) + "\n"


def test_following_another_process(tmp_path: Path) -> None:
    path, out = tmp_path / "metrics.jsonl", io.StringIO()
    with progress("GRPO", 5, stream=out) as p:
        follower = Follower(path, p, {"reward": "reward/mean"})
        follower.poll()  # no file yet
        path.write_text(line(0, **{"reward/mean": 0.5}) + line(1) + '{"step": 2, "rew')
        follower.poll()  # the torn line waits
        with path.open("a") as f:
            f.write('ard/mean": null}\n')
        follower.poll()
    lines = out.getvalue().splitlines()
    assert [shown.split()[1] for shown in lines] == ["1/5", "2/5", "3/5"]
    assert lines[0].endswith("reward 0.5") and "reward" not in lines[2]


def test_following_over_a_resume_that_cuts_the_file(tmp_path: Path) -> None:
    path, out = tmp_path / "metrics.jsonl", io.StringIO()
    path.write_text("".join(line(s) for s in range(6)))
    with progress("GRPO", 10, done=4, stream=out) as p:
        follower = Follower(path, p, {})
        path.write_text("".join(line(s) for s in range(4)))  # the ranks resume at step 4
        follower.poll()
        with path.open("a") as f:
            f.write(line(4))
        follower.poll()
    assert [shown.split()[1] for shown in out.getvalue().splitlines()] == ["5/10"]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (59.4, "59s"), (60, "1m00s"), (200, "3m20s"), (7500, "2h05m")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_a_narrow_terminal_cuts_the_metrics_and_never_the_title(columns: int) -> None:
    """At 60 columns the bar once showed "G…" for "GRPO"."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(slave, "w") as terminal, progress("GRPO", 100, stream=terminal) as p:
        for _ in range(3):
            p.step(loss=0.123456, reward=0.8765, searches=0.4321, entropy=1.2345, gap=0.00012)
    shown = all_shown(master)
    assert "GRPO" in shown and "3/100" in shown
    assert columns < 60 or "ETA" in shown


def test_what_is_counted_has_its_own_name() -> None:
    out = io.StringIO()
    with progress("checking data.train", 4, stream=out, unit="row") as p:
        p.step(4)
    assert "row" in out.getvalue() and "step" not in out.getvalue()
