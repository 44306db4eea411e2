"""A few tokens through the engines of a config: the round trip that every turn of a rollout is."""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.doctor.check import Check, Finding, Level, Place, Who
from megatron_mmsr1.doctor.tasks import PLACE
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.procs.service import Service
from megatron_mmsr1.rollout import engines
from megatron_mmsr1.rollout.engines.base import Engine, Launch, SaysAttention
from megatron_mmsr1.rollout.generation import Generation

IDS = list(range(16))  # plain tokens in every vocabulary
TOKENS = 16
TIMEOUT_S = 120.0


def run(place: Place) -> list[Finding]:
    """The engines of `engine.urls`; else, only where it was asked for, one that is started for this. Raises RunError for one
    that does not answer, UsageError for one of another model."""
    cfg = place.cfg
    if cfg is None:
        return []
    kind = engines.get(cfg.engine.name)
    if cfg.engine.urls:
        from megatron_mmsr1.run import preflight

        preflight.engines(cfg, publishes=True)
        return [_asked(kind, url) for url in cfg.engine.urls]
    if not place.asked:
        return [Finding(cfg.engine.name, "not started, which may take minutes: mmsr1 doctor CONFIG --only engine starts one")]
    return _started(kind, cfg)


def _started(kind: Engine, cfg: RunConfig) -> list[Finding]:
    with tempfile.TemporaryDirectory(prefix="mmsr1-doctor-") as directory:
        launch = Launch(model=Path(cfg.model.path), settings=cfg.engine, log=Path(directory) / "engine.log", seed=cfg.seed)
        command = kind.command(launch)
        with Service(replace(command, without=[*command.without, *PLACE])).start() as service:
            started = f"{cfg.engine.name} started in {service.started_s:.0f} s"
            return [Finding("start", started, data={"seconds": service.started_s}), _asked(kind, service.url)]


def _asked(kind: Engine, url: str) -> Finding:
    control = kind.control(url, timeout_s=TIMEOUT_S)
    served = control.served()
    turns = asyncio.run(_turns(kind, url))
    if wrong := [w for done, _ in turns if (w := _wrong(done, served.version))]:
        raise RunError(f"{url}: {wrong[0]}")
    first, second = (ms for _, ms in turns)
    done = turns[1][0]
    attention = control.attention() if isinstance(control, SaysAttention) else ""
    value = f"{len(done.token_ids)} tokens in {second:.0f} ms (the first time {first:.0f} ms), weights version {served.version}"
    data: dict[str, Any] = {"ms": second, "first_ms": first, "tokens": len(done.token_ids), "attention": attention}
    said = f"{value}, attention {attention}" if attention else value
    return Finding(f"round trip {url}", said, Level.OK, data=data)


async def _turns(kind: Engine, url: str) -> list[tuple[Generation, float]]:
    """The same turn twice, with the milliseconds that each took."""
    client, turns = kind.client([url], timeout_s=TIMEOUT_S, retries=0), []
    try:
        for _ in range(2):
            began = time.perf_counter()
            done = await client.generate(IDS, [], max_new_tokens=TOKENS, temperature=1.0, seed=1)
            turns.append((done, (time.perf_counter() - began) * 1e3))
    finally:
        await client.close()
    return turns


def _wrong(done: Generation, version: int) -> str:
    """What is not as a trainer needs it; "" if nothing is."""
    if not 1 <= len(done.token_ids) <= TOKENS or len(done.logprobs) != len(done.token_ids):
        return f"{len(done.token_ids)} tokens with {len(done.logprobs)} log-probs, of {TOKENS} asked for"
    if not all(math.isfinite(x) and x <= 0 for x in done.logprobs):
        return f"log-probs that are none: {done.logprobs}"
    if done.weight_version != version:
        return f"a turn by weights of version {done.weight_version}, while it says that it serves {version}"
    return ""


CHECK = Check("a few tokens through the engines", Who.NODES, run)
