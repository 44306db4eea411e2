"""In the place of mmsr1 in tests of jobs: its verbs plan, node, train and serve as far as a job's script sees them.

The head waits for an agent of each step, as the real one; then it makes a step whenever a file in its output asks for one:
go.1, go.2, ... Each life is a line of lives.jsonl there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import yaml

STEPS = 3


def nodes() -> list[str]:
    return [pair.partition("=")[0] for pair in os.environ["MMSR1_NODES"].split(",")]


def head_address() -> tuple[str, int]:
    host, _, port = os.environ["MMSR1_HEAD"].partition(":")
    return host, int(port)


def plan() -> None:
    print(f"trainer {','.join(nodes())}\nengines {nodes()[-1]}")


def node(step: str) -> None:
    while True:
        try:
            head = socket.create_connection(head_address(), timeout=60)
            break
        except ConnectionRefusedError:  # it has not begun to listen
            time.sleep(0.1)
    name = os.environ["SLURMD_NODENAME"]
    head.sendall(f"{os.environ['MMSR1_JOB_TOKEN']} {step} {name}\n".encode())
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
    print(f"agent of {step} on {name}, GPUs {gpus}", flush=True)
    head.settimeout(None)
    with contextlib.suppress(ConnectionResetError):
        head.recv(1)  # until the head ends


def train(config: str) -> int:
    """0; 75 after SIGUSR1; 9 where the file fail is there."""
    out = Path(yaml.safe_load(Path(config).read_text())["output"])
    out.mkdir(parents=True, exist_ok=True)
    stop: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: stop.append(number))
    signal.siginterrupt(signal.SIGUSR1, False)
    bystander = subprocess.Popen(["sleep", "600"])  # as an engine: it knows nothing of the signal, and must not get it
    agents, connections = [], []
    if "MMSR1_HEAD" in os.environ:
        with socket.create_server(head_address()) as server:
            for _ in range(len(nodes()) + 1):
                connection, _ = server.accept()
                connections.append(connection)
                token, *agent = connection.makefile().readline().split()
                assert token == os.environ["MMSR1_JOB_TOKEN"]
                agents.append(agent)
    metrics = out / "metrics.jsonl"
    done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    kept = {k: os.environ.get(k) for k in ("SECRET_KEY", "NCCL_TEST", "SLURM_RESTART_COUNT", "CUDA_DEVICE_MAX_CONNECTIONS")}
    with (out / "lives.jsonl").open("a") as f:
        f.write(json.dumps({"from": done, "agents": sorted(agents), "env": kept, "cwd": os.getcwd()}) + "\n")
    try:
        while done < STEPS and not stop:
            if (out / "fail").exists():
                return 9
            if not (out / f"go.{done + 1}").exists():
                time.sleep(0.05)
                continue
            with metrics.open("a") as f:
                f.write(json.dumps({"step": done}) + "\n")
            done += 1
            print(f"GRPO {done}/{STEPS}", file=sys.stderr, flush=True)
        assert bystander.poll() is None, "the signal reached a process that does not expect it"
        return 75 if done < STEPS else 0
    finally:
        bystander.kill()


def serve(words: list[str]) -> None:
    """Until SIGTERM, and then in order."""
    state = Path(words[words.index("--state") + 1])
    state.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda *_: (state / "ended").touch())
    (state / "served").write_text("\n".join(words))
    signal.pause()


def main() -> int:
    verb, *rest = sys.argv[1:]
    if verb == "plan":
        plan()
    elif verb == "node":
        node(rest[1])
    elif verb == "train":
        return train(rest[0])
    elif verb == "serve":
        serve(rest)
    elif verb == "eval":
        print("evaluated", yaml.safe_load(Path(rest[0]).read_text())["model"]["path"], flush=True)
    elif verb == "export":
        Path(rest[1]).mkdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
