"""The inside of the rollout worker's process: jobs in, trajectories out."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.images import ImageStore
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.rollout import engines
from megatron_mmsr1.rollout.batch import Batch
from megatron_mmsr1.rollout.context import Context, search_client
from megatron_mmsr1.rollout.jobs import Failed, Job, Ready
from megatron_mmsr1.rollout.scoring import Scoring
from megatron_mmsr1.rollout.throttle import Throttle


def serve(pipe: Connection, config: str, engine_urls: list[str], search_url: str | None, image_root: str) -> None:
    """Until the leader closes the pipe or dies. Ctrl-C is the leader's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_serve(pipe, RunConfig.model_validate_json(config), engine_urls, search_url, image_root))


async def _serve(pipe: Connection, cfg: RunConfig, engine_urls: list[str], search_url: str | None, image_root: str) -> None:
    jobs = _listen(pipe)
    try:
        client = search_client(cfg, search_url)
        throttle = None if client is None else Throttle(client, cfg.rollout)
        context = Context.open(cfg, throttle, ImageStore(image_root))
        scoring = Scoring(
            cfg.reward,
            workers=cfg.rollout.reward_workers,
            deadline_s=cfg.rollout.reward_timeout_s,
            directory=Path(cfg.output) / "reward",
        )
    except UsageError as e:
        pipe.send(Failed(str(e), usage=True))
        return
    engine = engines.get(cfg.engine.name).client(
        engine_urls,
        timeout_s=cfg.rollout.generate_timeout_s,
        retries=cfg.rollout.retries,
        stop_ids=[context.stop_id],
        hung_after_s=cfg.engine.hung_after_s,
        outage_s=cfg.engine.outage_s,
    )
    pipe.send(Ready())
    try:
        while True:
            job = await jobs.get()
            if client is not None:
                client.step = job.step
            try:
                answer = await Batch(context, engine, cfg, job, pipe.send, scoring, throttle).run()
            except (UsageError, RunError) as e:
                answer = Failed(str(e), usage=isinstance(e, UsageError))
            except Exception:  # a bug of ours: the leader reports it, whatever it is
                answer = Failed(f"the rollout worker failed:\n{traceback.format_exc()}")
            pipe.send(answer)
    finally:
        await scoring.close()
        await engine.close()
        if client is not None:
            await client.close()


def _listen(pipe: Connection) -> asyncio.Queue[Job]:
    """Jobs from a thread that also notices the leader's end, whatever the event loop is doing."""
    loop = asyncio.get_running_loop()
    jobs: asyncio.Queue[Job] = asyncio.Queue()

    def listen() -> None:
        while True:
            try:
                job = pipe.recv()
            except (EOFError, OSError):
                os._exit(0)  # nobody is left to answer to; requests in flight end with their connections
            loop.call_soon_threadsafe(jobs.put_nowait, job)

    threading.Thread(target=listen, daemon=True).start()
    return jobs
