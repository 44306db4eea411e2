"""A small world and runs of the real loop in it: two tensor-parallel ranks, an SGLang server, a search server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_mmsr1.procs.guard import descendants

ROOT = Path(__file__).parent.parent
COLD_START = ROOT / "megatron_mmsr1" / "atlas" / "checkpoints" / "tilted"

ONE_RANK = ("train.ranks=1", "megatron.tensor_parallel=1")  # for what has nothing to do with how the model is split


def small_world(out: Path) -> Path:
    from megatron_mmsr1.atlas.build import build
    from megatron_mmsr1.atlas.spec import AtlasSpec

    build(AtlasSpec(seed=5, entities=24, train_questions=64, heldout_questions=16, noise_pages=8), out)
    return out


def settings(world: Path, out: Path, *more: str) -> list[str]:
    """Overrides of configs/atlas.yaml: a few small steps in `world`."""
    return [
        f"output={out}",
        f"data.train=[{world}/train.parquet]",
        f"data.heldout=[{world}/heldout.parquet]",
        f"search.corpus={world}",
        "data.prompts_per_step=6",
        "data.group_size=4",
        "train.steps=5",
        "train.save_interval=2",
        "optimizer.warmup_steps=0",
        *more,
    ]


def mmsr1(*args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a person runs it, from the repository's root. `env` is added to the environment."""
    command = [sys.executable, "-m", "megatron_mmsr1.cli", *args]
    env = {**os.environ, **(env or {})}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)


def metrics(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def kill_everything(process: subprocess.Popen[Any]) -> None:
    """SIGKILL to the command and all that it started, at once, as a power cut would."""
    pids = [process.pid, *descendants(process.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # nobody may clean up after anybody
    for pid in [process.pid, *descendants(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}/cmdline").exists() and _alive(pid) for pid in pids):
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
