"""A training step's load on the search server: `python benchmarks/search_load.py [--calls 5000 --distinct 1250 --latency
0.05]`.

Three processes on loopback: a vendor that takes `--latency` seconds for an answer and counts what it is asked (SearXNG's wire
format), the search server in front of it, and this one, whose client makes all calls at once. Cold: the store is empty, and
each distinct query must go out exactly once. Warm: the same calls again. The ideal cold wall is distinct x latency /
concurrency.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
from record import record

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.procs import http
from megatron_mmsr1.search.client import SearchClient
from megatron_mmsr1.search.server.launch import launch

RESULTS = Path(__file__).parent / "results"


def vendor(pipe: Connection, latency_s: float) -> None:
    """SearXNG's JSON API as an ASGI app, and GET /count."""
    import uvicorn

    asked = 0
    snippet = "What a search engine says of a page is a sentence or two, and this is about as long as that. " * 2

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        nonlocal asked
        if scope["type"] != "http":
            return
        if scope["path"] == "/count":
            body = str(asked).encode()
        else:
            asked += 1
            await asyncio.sleep(latency_s)
            query = scope["query_string"].decode()
            rows = [
                {"url": f"https://example.org/{n}?{query[:40]}", "title": f"Page {n}", "content": snippet} for n in range(5)
            ]
            body = orjson.dumps({"query": query, "results": rows})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
    pipe.send(sock.getsockname()[1])
    config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[sock])


async def burst(url: str, calls: int, distinct: int) -> dict[str, float]:
    """All calls at once from one client: wall and percentiles in seconds, failures, the share that the store answered."""
    async with SearchClient(url, timeout_s=300) as client:
        started = time.perf_counter()
        replies = await asyncio.gather(*(client.text(f"what is number {i % distinct}", 5) for i in range(calls)))
        wall = time.perf_counter() - started
    p50, p99 = np.percentile([r.seconds for r in replies], [50, 99])
    bad = sum(r.status != "ok" or len(r.hits) != 5 for r in replies)
    return {"wall_s": wall, "p50_s": p50, "p99_s": p99, "failed": bad, "cached": sum(r.cached for r in replies) / calls}


def measure(calls: int, distinct: int, latency_s: float, concurrency: int) -> dict[str, Any]:
    ours, theirs = multiprocessing.Pipe()
    upstream = multiprocessing.Process(target=vendor, args=(theirs, latency_s), daemon=True)
    upstream.start()
    port = ours.recv()

    def count() -> int:
        return int(http.get(f"http://127.0.0.1:{port}/count").text)

    cfg = SearchConfig.model_validate(
        {
            "deadline_s": 300,
            "text": {
                "backend": "searxng",
                "url": f"http://127.0.0.1:{port}",
                "concurrency": concurrency,
                "timeout_s": 60,
                "spare": 0,
            },
            "read": {"backend": "none"},
            "summarise": {"backend": "none"},
        }
    )
    try:
        with ExitStack() as stack:
            tmp = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            server = stack.enter_context(launch(cfg, cache_path=tmp / "store.sqlite", log=tmp / "log"))
            process = psutil.Process(server.child.command_pid)
            before = process.memory_info().rss
            asyncio.run(burst(server.url, 1, 1))  # connections, imports
            one = count()
            cold = asyncio.run(burst(server.url, calls, distinct))
            asked = count() - one + 1  # the first query is one of them
            warm = min((asyncio.run(burst(server.url, calls, distinct)) for _ in range(3)), key=lambda r: r["wall_s"])
            again = count() - one + 1 - asked
            after = process.memory_info().rss
    finally:
        upstream.kill()
        upstream.join()
    ideal = distinct * latency_s / concurrency
    return {
        "calls": calls,
        "distinct": distinct,
        "latency_s": latency_s,
        "concurrency": concurrency,
        "upstream_calls_cold": asked,
        "upstream_calls_warm": again,
        "ideal_cold_s": ideal,
        "cold_over_ideal": cold["wall_s"] / ideal,
        "cold": cold,
        "warm": warm,
        "server_rss_mib": {"idle": before / 2**20, "after": after / 2**20},
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--calls", type=int, default=5000)
    p.add_argument("--distinct", type=int, default=1250)
    p.add_argument("--latency", type=float, default=0.05, help="seconds that the vendor takes")
    p.add_argument("--concurrency", type=int, nargs="+", default=[16, 32], help="search.text.concurrency")
    p.add_argument("--out", type=Path, default=RESULTS / "search_load.json")
    args = p.parse_args()
    rows = [measure(args.calls, args.distinct, args.latency, c) for c in args.concurrency]
    print(f"{'concurrency':>11}{'upstream':>10}{'ideal s':>9}{'cold s':>9}{'ratio':>7}{'cold p99':>10}", end="")
    print(f"{'warm s':>9}{'warm p99':>10}{'failed':>8}{'MiB':>12}")
    for r in rows:
        mib = r["server_rss_mib"]
        print(
            f"{r['concurrency']:>11}{r['upstream_calls_cold']:>10}{r['ideal_cold_s']:>9.2f}{r['cold']['wall_s']:>9.2f}"
            f"{r['cold_over_ideal']:>7.2f}{r['cold']['p99_s']:>10.2f}{r['warm']['wall_s']:>9.2f}{r['warm']['p99_s']:>10.2f}"
            f"{r['cold']['failed'] + r['warm']['failed']:>8.0f}{mib['idle']:>6.0f}>{mib['after']:<5.0f}"
        )
    record(args.out, rows)


if __name__ == "__main__":
    main()
