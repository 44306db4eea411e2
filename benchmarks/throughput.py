"""How fast the Atlas run is on this machine, and what it holds in memory: `python benchmarks/throughput.py [--steps N]`.

A short `mmsr1 train configs/atlas.yaml` in a temporary directory, without evaluation; its first step warms caches up and
does not count. Speeds come from its metrics.jsonl: sampled tokens over the wall time of a step's rollouts, trained tokens
over that of its train step. Memory is the peak resident size (VmHWM) of each process that the run started, read from /proc
while it lives; what forked processes share is counted in each. Writes benchmarks/results/throughput-PROCESSOR.json.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from megatron_mmsr1.procs.guard import descendants
from megatron_mmsr1.run.logs import read_metrics

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
POLL_S = 0.25
# What is shown of the steps: the metric, and what it is called.
SHOWN = {
    "rollout/tokens_per_s": "rollout, sampled tokens/s",
    "rollout/trajectories_per_s": "rollout, trajectories/s",
    "tokens_per_s": "train step, trained tokens/s",
    "seconds/rollout": "rollout, s",
    "train_seconds": "train step, s",
    "seconds/sync": "weights to the engine, s",
}


class Memory:
    """The peak resident size of each process below `root`, by what it is."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.peaks: dict[int, tuple[str, int]] = {}  # pid: what it is, bytes

    def look(self) -> None:
        for pid in descendants(self.root):
            try:
                at = Path(f"/proc/{pid}")
                what = role(at)
                status = (at / "status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            peak = re.search(r"VmHWM:\s+(\d+) kB", status)
            if peak:
                self.peaks[pid] = (what, max(int(peak[1]) * 1024, self.peaks.get(pid, ("", 0))[1]))

    def by_role(self) -> dict[str, list[int]]:
        out: dict[str, list[int]] = {}
        for what, size in self.peaks.values():
            out.setdefault(what, []).append(size)
        return {k: sorted(v, reverse=True) for k, v in sorted(out.items())}


def role(process: Path) -> str:
    """What a process of the run is, by its command line; a rank by its environment too."""
    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    if "guard.py" in command or "torch.distributed.run" in command or "resource_tracker" in command:
        return "supervision"
    if "sglang" in command:
        return "engine"
    if "megatron_mmsr1.search.server" in command:
        return "search server"
    rank = re.search(rb"(?:^|\0)RANK=(\d+)", (process / "environ").read_bytes())
    if "megatron_mmsr1.train" in command and rank:
        return f"trainer rank {rank[1].decode()}"
    if "multiprocessing" in command and rank:
        return "rollout worker"
    return "other"


def run(steps: int, extra: list[str], out: Path) -> tuple[list[dict[str, Any]], Memory]:
    """Train, watch the memory; the rows of all steps but the first. A failing command ends the benchmark with its exit code."""
    settings = [f"output={out}", f"train.steps={steps + 1}", "train.save_interval=1000000", "data.heldout=[]", *extra]
    process = subprocess.Popen([sys.executable, "-m", "megatron_mmsr1.cli", "train", "configs/atlas.yaml", *settings], cwd=ROOT)
    memory = Memory(process.pid)
    while process.poll() is None:
        memory.look()
        time.sleep(POLL_S)
    if process.returncode:
        sys.exit(process.returncode)
    return read_metrics(out / "metrics.jsonl")[1:], memory


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median, least and most of each shown metric; a step with nothing to train on (no live group) has no training speed."""
    trained = [r for r in rows if r["tokens"]]
    out: dict[str, dict[str, float]] = {}
    for name in SHOWN:
        values = [r[name] for r in (trained if name in ("tokens_per_s", "train_seconds") else rows) if r.get(name) is not None]
        if values:
            out[name] = {"median": statistics.median(values), "least": min(values), "most": max(values), "steps": len(values)}
    return out


def table(result: dict[str, Any]) -> str:
    machine = result["machine"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        "",
        "| speed | median | least | most | steps |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, s in result["speed"].items():
        lines.append(f"| {SHOWN[name]} | {s['median']:.4g} | {s['least']:.4g} | {s['most']:.4g} | {s['steps']} |")
    lines += ["", "| peak memory | processes | GiB each |", "| --- | ---: | --- |"]
    for what, sizes in result["peak_memory_bytes"].items():
        lines.append(f"| {what} | {len(sizes)} | {', '.join(f'{s / 2**30:.2f}' for s in sizes)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="steps that are measured (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of the result (default: %(default)s)")
    parser.add_argument("override", metavar="key=value", nargs="*", help="settings that replace configs/atlas.yaml's")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        rows, memory = run(args.steps, args.override, Path(tmp) / "run")
        environment = json.loads((Path(tmp) / "run" / "environment.json").read_text())
    result = {
        "benchmark": "throughput",
        "settings": [s for s in args.override if "/" not in s],
        "machine": environment["machine"],
        "python": environment["python"],
        "packages": environment["packages"],
        "speed": summary(rows),
        "peak_memory_bytes": memory.by_role(),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", environment["machine"]["processor"].lower()).strip("-")
    target = args.output / f"throughput-{slug}.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(f"\nwrote {target}")


if __name__ == "__main__":
    main()
