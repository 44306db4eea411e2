"""Calls a second of the search server on loopback, through its own client: `python benchmarks/search_server.py [CORPUS]`.

CORPUS is a directory as `mmsr1 atlas build` writes it; without one a world is built in a temporary directory. Cold calls are
all different and go through the backends and into the store; warm ones come out of it. Client and server share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import orjson
from PIL import Image

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.search.client import SearchClient
from megatron_mmsr1.search.server.launch import launch
from megatron_mmsr1.search.wire import Reply


async def measure(name: str, call: Callable[[int], Awaitable[Reply]], calls: int, in_flight: int) -> None:
    throttle = asyncio.Semaphore(in_flight)
    seconds: list[float] = []
    bad = cached = 0

    async def one(i: int) -> None:
        nonlocal bad, cached
        async with throttle:
            reply = await call(i)
        seconds.append(reply.seconds)
        bad += reply.status not in ("ok", "empty")
        cached += reply.cached

    started = time.perf_counter()
    await asyncio.gather(*(one(i) for i in range(calls)))
    wall = time.perf_counter() - started
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    print(f"{name:<22}{in_flight:>10}{calls / wall:>12.0f}{p50:>10.2f}{p99:>10.2f}{cached / calls:>9.0%}{bad:>8}")


async def bench(url: str, queries: Sequence[str], pictures: Sequence[bytes]) -> None:
    print(f"{'':<22}{'in flight':>10}{'calls/s':>12}{'p50 ms':>10}{'p99 ms':>10}{'cached':>9}{'failed':>8}")
    async with SearchClient(url) as client:
        await client.text("warm up the connection")
        for in_flight in (1, 32, 512):
            mine = [f"{q} {in_flight}" for q in queries]
            await measure("text, cold", lambda i, m=mine: client.text(m[i]), len(mine), in_flight)
            await measure("text, warm", lambda i, m=mine: client.text(m[i]), len(mine), in_flight)
            seen = [speckled(p, in_flight) for p in pictures]
            await measure("image, cold", lambda i, s=seen: client.image(s[i]), len(seen), in_flight)
            await measure("image, warm", lambda i, s=seen: client.image(s[i]), len(seen), in_flight)


def speckled(png: bytes, seed: int) -> bytes:
    """The same picture to an eye, another to a cache."""
    pixels = np.array(Image.open(io.BytesIO(png)).convert("RGB"))
    rng = np.random.default_rng(seed)
    pixels[rng.random(pixels.shape[:2]) < 0.02] = 128
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, nargs="?")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        corpus = args.corpus or _world(Path(tmp) / "world")
        rows = [orjson.loads(r) for r in (corpus / "images.jsonl").read_bytes().splitlines()]
        queries = [f"{r['title']} {a}" for r in rows for a in ("capital", "river", "ruler", "founded")]
        pictures = [(corpus / r["file"]).read_bytes() for r in rows]
        with launch(SearchConfig(corpus=str(corpus)), cache_path=Path(tmp) / "cache.sqlite", log=Path(tmp) / "log") as server:
            asyncio.run(bench(server.url, queries, pictures))


def _world(path: Path) -> Path:
    from megatron_mmsr1.atlas.build import build
    from megatron_mmsr1.atlas.spec import AtlasSpec

    build(AtlasSpec(), path, model=False)
    return path


if __name__ == "__main__":
    main()
