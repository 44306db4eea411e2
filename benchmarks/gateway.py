"""The gateway under load on loopback: `python benchmarks/gateway.py [--streams 200 --rounds 3]`.

A real engine with the shipped Atlas model, a real search server, the gateway in a process of its own, and this one, which keeps
`--streams` streams open at once and asks questions of all kinds, pictures included. What the gateway costs is its own CPU time
over the turns that were sampled, the parsing of requests and the tokenising, decoding and searching client included. In the end
all streams are left at their first event, and it is counted how long the engine works on for nobody.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
from record import record

from megatron_mmsr1.atlas.build import build
from megatron_mmsr1.atlas.spec import AtlasSpec
from megatron_mmsr1.config import load
from megatron_mmsr1.data.dataset import Prompt, PromptDataset
from megatron_mmsr1.procs import http
from megatron_mmsr1.procs.ports import bind
from megatron_mmsr1.procs.service import Service
from megatron_mmsr1.rollout import engines
from megatron_mmsr1.rollout.engines.base import Launch
from megatron_mmsr1.search.server import launch as search_server
from serving.settings import ServeConfig

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WORLD = AtlasSpec(seed=5, entities=24, train_questions=64, heldout_questions=64, noise_pages=8)
ANNOUNCED = "gateway on port "


def config(world: Path, concurrency: int, queue: int) -> ServeConfig:
    """The limits of configs/atlas.yaml."""
    run = load(ROOT / "configs" / "atlas.yaml", [f"search.corpus={world}", f"model.path={ROOT / _CHECKPOINT}"])
    limits = {"concurrency": concurrency, "queue": queue}
    parts = {name: getattr(run, name).model_dump() for name in ("model", "protocol", "search")}
    return ServeConfig.model_validate({**parts, "gateway": {"name": "atlas", "limits": limits}})


_CHECKPOINT = Path("megatron_mmsr1/atlas/checkpoints/tilted")


# -------------------------------------------------------------------------------------------------- the gateway's process
async def serve_gateway(cfg: ServeConfig, engine: str, search: str) -> None:
    from serving.gateway.access import log_to
    from serving.gateway.app import create_app
    from serving.gateway.server import serve
    from serving.stack import open_stack

    log_to(sys.stderr)
    async with open_stack(cfg, engines=[engine], search=search) as stack:
        with bind("127.0.0.1", 0) as sock:
            await serve(create_app(cfg, stack), sock, ready=lambda port: print(f"{ANNOUNCED}{port}", flush=True))


@contextlib.contextmanager
def gateway(cfg: ServeConfig, engine: str, search: str, log: Path) -> Iterator[tuple[str, psutil.Process]]:
    command = [sys.executable, __file__, "--gateway", cfg.model_dump_json(), engine, search]
    with log.open("wb") as err, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith(ANNOUNCED):
                raise SystemExit(f"the gateway did not start:\n{log.read_text()[-2000:]}")
            yield f"http://127.0.0.1:{line.removeprefix(ANNOUNCED).strip()}", psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(30)


# ------------------------------------------------------------------------------------------------------------- the load
def request(prompt: Prompt) -> bytes:
    parts: list[dict[str, Any]] = [{"type": "text", "text": prompt.question}]
    for data in prompt.images:
        parts.append({"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()}})
    return json.dumps({"model": "atlas", "stream": True, "messages": [{"role": "user", "content": parts}]}).encode()


class Load:
    """Streams that are open at once, each asking one question after the other."""

    def __init__(self, url: str, bodies: list[bytes]):
        self._url, self._bodies = f"{url}/v1/chat/completions", itertools.cycle(bodies)
        self.statuses: collections.Counter[str] = collections.Counter()
        self.first: list[float] = []
        self.whole: list[float] = []

    async def run(self, streams: int, rounds: int, *, leave: bool = False) -> float:
        """Seconds. `leave`: each stream is left at its first event."""
        connector = aiohttp.TCPConnector(limit=0, force_close=leave)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as session:
            started = time.perf_counter()
            await asyncio.gather(*(self._stream(session, rounds, leave) for _ in range(streams)))
            return time.perf_counter() - started

    async def _stream(self, session: aiohttp.ClientSession, rounds: int, leave: bool) -> None:
        headers = {"content-type": "application/json"}
        for _ in range(rounds):
            began = time.perf_counter()
            async with session.post(self._url, data=next(self._bodies), headers=headers) as r:
                seen = b""
                async for line in r.content:
                    if line.startswith(b"data:"):
                        if not seen and r.status == 200:
                            self.first.append(time.perf_counter() - began)
                        seen = line
                        if leave:
                            return
            ended = r.status != 200 or seen.strip() == b"data: [DONE]"
            self.statuses[str(r.status) if ended else "error in mid-stream"] += 1
            self.whole.append(time.perf_counter() - began)


def running(engine: str) -> int:
    return sum(x["num_running_reqs"] + x["num_waiting_reqs"] for x in http.get(f"{engine}/v1/loads").json()["loads"])


def turns(url: str) -> float:
    lines = http.get(f"{url}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("mmsr1_gateway_turns_total ")).split()[1])


def cpu_s(process: psutil.Process) -> float:
    t = process.cpu_times()
    return t.user + t.system


async def measure(
    url: str, engine: str, process: psutil.Process, bodies: list[bytes], streams: int, rounds: int
) -> dict[str, Any]:
    await Load(url, bodies).run(8, 4)  # imports, connections, the search's store
    cpu, made = cpu_s(process), turns(url)
    load = Load(url, bodies)
    wall = await load.run(streams, rounds)
    cpu, made = cpu_s(process) - cpu, turns(url) - made

    left = Load(url, bodies)
    await left.run(streams, 1, leave=True)
    gone = time.perf_counter()
    while running(engine):
        await asyncio.sleep(0.01)
    freed = time.perf_counter() - gone
    p50, p95 = np.percentile(load.first, [50, 95])
    return {
        "streams": streams,
        "requests": sum(load.statuses.values()),
        "statuses": dict(load.statuses),
        "wall_s": wall,
        "turns": made,
        "gateway_cpu_ms_per_turn": 1e3 * cpu / made,
        "gateway_cpu_share": cpu / wall,
        "first_event_p50_s": p50,
        "first_event_p95_s": p95,
        "answer_p95_s": np.percentile(load.whole, 95),
        "engine_free_after_disconnect_s": freed,
        "gateway_rss_mib": process.memory_info().rss / 2**20,
    }


def bench(streams: int, rounds: int) -> list[dict[str, Any]]:
    rows = []
    with contextlib.ExitStack() as stack:
        tmp = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        build(WORLD, tmp / "world")
        cfg = config(tmp / "world", streams, streams)
        bodies = [request(p) for p in PromptDataset([str(tmp / "world" / "heldout.parquet")])]
        launch = Launch(model=Path(cfg.model.path), settings=cfg.engine, log=tmp / "engine.log", streams=True)
        engine = stack.enter_context(Service(engines.get(cfg.engine.name).command(launch)).start())
        search = stack.enter_context(search_server.launch(cfg.search, cache_path=tmp / "cache", log=tmp / "search.log"))
        for n in (1, streams):
            with gateway(cfg, engine.url, search.url, tmp / "gateway.log") as (url, process):
                more = rounds if n > 1 else 40
                rows.append(asyncio.run(measure(url, engine.url, process, bodies, n, more)))
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--gateway"]:
        cfg, engine, search = sys.argv[2:]
        import uvloop

        uvloop.run(serve_gateway(ServeConfig.model_validate_json(cfg), engine, search))
        return
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--streams", type=int, default=200)
    p.add_argument("--rounds", type=int, default=3, help="questions a stream")
    p.add_argument("--out", type=Path, default=RESULTS / "gateway.json")
    args = p.parse_args()
    rows = bench(args.streams, args.rounds)
    print(f"{'streams':>8}{'requests':>10}{'wall s':>8}{'turns':>7}{'CPU ms/turn':>13}", end="")
    print(f"{'first p50':>11}{'p95 s':>8}{'freed s':>9}  statuses")
    for r in rows:
        print(
            f"{r['streams']:>8}{r['requests']:>10}{r['wall_s']:>8.1f}{r['turns']:>7.0f}{r['gateway_cpu_ms_per_turn']:>13.2f}"
            f"{r['first_event_p50_s']:>11.2f}{r['first_event_p95_s']:>8.2f}{r['engine_free_after_disconnect_s']:>9.2f}"
            f"  {r['statuses']}"
        )
    record(args.out, rows)


if __name__ == "__main__":
    main()
