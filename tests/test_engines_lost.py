"""Two engines, one killed as often as it comes back: the run goes on with the other, says so and counts it. Ranks that
are killed are started again beside the servers (`placement.restarts`)."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from loop_fixtures import ROOT, metrics, settings

from megatron_mmsr1.run.directory import checkpointed_step

pytestmark = pytest.mark.slow


def engine_processes(log: Path) -> list[psutil.Process]:
    """Of the engine that writes to `log`: by the file of its arguments."""
    spec = str(log.with_suffix(".args.json"))
    return [p for p in psutil.process_iter(["cmdline"]) if spec in (p.info["cmdline"] or [])]


def rank(head: int) -> psutil.Process:
    """One of the ranks below this process; others end while they are looked at."""
    for process in psutil.Process(head).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "megatron_mmsr1.train" in process.cmdline() and "RANK" in process.environ():
                return process
    raise AssertionError("no rank runs")


def steps_more(out: Path, run: subprocess.Popen[bytes], n: int = 2) -> int:
    """Waits for so many further checkpoints; the last one's step."""
    end = checkpointed_step(out) + n
    while checkpointed_step(out) < end and run.poll() is None:
        time.sleep(0.2)
    return checkpointed_step(out)


def test_a_run_goes_on_without_an_engine_that_is_lost(atlas_world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = [
        "placement={engines: {count: 2}, restarts: 1}",
        "train.save_interval=1",
        "train.steps=500",  # it is stopped
        "train.eval_limit=2",
        "data.heldout=[]",
    ]
    argv = [sys.executable, "-m", "megatron_mmsr1.cli", "train", "configs/atlas.yaml", *settings(atlas_world, out, *more)]
    with (tmp_path / "said").open("w+") as said:
        run = subprocess.Popen(argv, cwd=ROOT, stdout=said, stderr=said)
        try:
            while not metrics(out) and run.poll() is None:
                time.sleep(0.2)
            victim = out / "logs" / "engine-1.log"
            while run.poll() is None and "is lost; the run goes on with 1 of 2" not in (tmp_path / "said").read_text():
                for process in engine_processes(victim):
                    with contextlib.suppress(psutil.NoSuchProcess):  # the death of one may end the next
                        process.kill()
                time.sleep(0.2)
            without = steps_more(out, run)
            rank(run.pid).kill()
            while "the ranks are started again" not in (tmp_path / "said").read_text() and run.poll() is None:
                time.sleep(0.2)
            steps_more(out, run)
            run.send_signal(signal.SIGUSR1)
            assert run.wait() == 75, (tmp_path / "said").read_text()
        finally:
            run.kill()
            run.wait()
    text = (tmp_path / "said").read_text()
    assert re.search(r"nothing answers at the engine http://\S+: it has no part in weights \d", text)
    rows = metrics(out)
    assert [r["step"] for r in rows] == list(range(len(rows)))
    assert "the ranks are started again (0 restarts left)" in text and text.count("starting 2 engines") == 1
    life, stopped = [json.loads(line) for line in (out / "lives.jsonl").read_text().splitlines()]
    assert life["to"] >= without and "stopped after step" in stopped["how"]
    assert rows[0]["engines/absent"] == 0 and rows[-1]["engines/absent"] == 1
    assert all(r["rollout/engine_errors"] == 0 for r in rows if "rollout/engine_errors" in r)  # its turns moved
