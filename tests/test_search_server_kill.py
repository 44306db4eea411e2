"""kill -9 of the real server in the middle of writing: callers get typed errors and try again, the store lost nothing."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from urllib.parse import urlsplit

from search_fixtures import write_corpus

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.procs.service import Service
from megatron_mmsr1.search.client import SearchClient
from megatron_mmsr1.search.server.launch import launch
from megatron_mmsr1.search.store.store import Store
from megatron_mmsr1.search.wire import TextReply
from megatron_mmsr1.trajectory import ToolStatus

CALLS = 300


def start(cfg: SearchConfig, tmp_path: Path, port: int = 0) -> Service:
    until = time.monotonic() + 120
    while True:
        try:
            return launch(cfg, cache_path=tmp_path / "c.sqlite", log=tmp_path / "log", port=port)
        except RunError:  # a server that was killed, or for a moment another test's, still has the port
            if not port or time.monotonic() > until:
                raise
            time.sleep(0.1)


def port_of(server: Service) -> int:
    return urlsplit(server.url).port or 0


def verified(path: Path) -> int:
    """The entries of a whole store."""
    store = Store(path)
    assert store.verify() == store.snapshot_id()
    n = store.counts().get("text", 0)
    store.close()
    return n


async def ask(client: SearchClient, queries: list[str]) -> dict[str, TextReply]:
    return dict(zip(queries, await asyncio.gather(*(client.text(q) for q in queries)), strict=True))


async def until_it_dies(client: SearchClient, name: str, told: dict[str, TextReply]) -> tuple[str, TextReply]:
    """Query after query into `told`; the first that failed."""
    i = 0
    while True:
        query = f"zurimo {name} {i}"
        reply = await client.text(query)
        if reply.status is not ToolStatus.OK:
            return query, reply
        told[query] = reply
        i += 1


async def test_rounds_of_a_killed_server(tmp_path: Path) -> None:
    cfg = SearchConfig(corpus=str(write_corpus(tmp_path / "w")), mode="record")
    rng, port, told, failed = random.Random(0), 0, dict[str, TextReply](), list[str]()
    for turn in range(4):
        server = await asyncio.to_thread(start, cfg, tmp_path, port)
        port = port_of(server)
        async with SearchClient(server.url, retries=0) as client:
            again = await ask(client, failed)  # who was turned away asks the server that took its place
            assert {r.status for r in again.values()} <= {ToolStatus.OK}
            told |= again
            lanes = [asyncio.create_task(until_it_dies(client, f"{turn} {lane}", told)) for lane in range(40)]
            await asyncio.sleep(rng.uniform(0.05, 0.3))
            server.child.process.kill()
            ends = dict(await asyncio.gather(*lanes))
        server.stop()
        assert all(r.status.infrastructure and r.detail for r in ends.values())
        failed = list(ends)
        assert verified(tmp_path / "c.sqlite") >= len(told)
    assert len(told) > 100
    with await asyncio.to_thread(start, cfg.model_copy(update={"mode": "replay-strict"}), tmp_path, port) as server:
        async with SearchClient(server.url, retries=0) as client:  # every answer that anyone saw was kept, as it was
            for q, r in (await ask(client, list(told))).items():
                assert (r.status, r.hits) == (told[q].status, told[q].hits)


async def test_calls_in_flight_ride_out_a_killed_server(tmp_path: Path) -> None:
    """With tries enough, a server that comes up again on the same port answers them all."""
    cfg = SearchConfig(corpus=str(write_corpus(tmp_path / "w")), latency_s=0.3)
    server = await asyncio.to_thread(start, cfg, tmp_path)
    async with SearchClient(server.url, retries=10, timeout_s=120) as client:
        calls = [asyncio.create_task(client.text(f"zurimo {i}")) for i in range(CALLS)]
        while not (await client.stats()).get("in_flight"):
            await asyncio.sleep(0.01)
        server.child.process.kill()
        server.stop()
        server = await asyncio.to_thread(start, cfg, tmp_path, port_of(server))
        try:
            assert {r.status for r in await asyncio.gather(*calls)} == {ToolStatus.OK}
            assert (await client.stats())["snapshot"]["entries"] == {"text": CALLS}
        finally:
            server.stop()
    assert verified(tmp_path / "c.sqlite") == CALLS
