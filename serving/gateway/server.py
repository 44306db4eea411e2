"""The app behind uvicorn, in an event loop that runs already: the stack's own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from megatron_mmsr1.procs.listening import ListeningServer

DRAIN_S = 5  # how long answers in the making may take to end after a signal


async def serve(
    app: ASGIApp,
    sock: socket.socket,
    *,
    ready: Callable[[int], object] | None = None,
    stop: asyncio.Event | None = None,
    drain_s: int = DRAIN_S,
    freeze: bool = True,
) -> None:
    """Until SIGTERM, SIGINT or `stop`. `sock`: a bound socket (`procs.ports.bind`); `ready` is given its port
    once it listens. `freeze`: the garbage collector leaves alone what exists by then (imports, the tokenizer), which it would
    otherwise go through again and again, for a good part of a second each time; for a process that does nothing else."""
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # the gateway has its own
        server_header=False,
        date_header=False,
        proxy_headers=False,  # nothing here asks who the peer is
        backlog=2048,
        timeout_keep_alive=75,  # longer than any common client keeps a connection, so that none meets a closed one
        timeout_graceful_shutdown=drain_s,
    )
    if freeze:
        gc.collect()
        gc.freeze()
    server = ListeningServer(settings, lambda: ready and ready(sock.getsockname()[1]))
    watch = asyncio.create_task(_stop(server, stop)) if stop is not None else None
    try:
        await server.serve(sockets=[sock])
    finally:
        if watch is not None:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch


async def _stop(server: uvicorn.Server, stop: asyncio.Event) -> None:
    await stop.wait()
    server.should_exit = True
