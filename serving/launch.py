"""`mmsr1 serve` and `mmsr1 demo`: engines, search server and gateway as one command, which ends them all."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.procs.ports import bind
from megatron_mmsr1.procs.signals import exit_on_signals
from serving.keys import open_keys
from serving.login import AppLogin
from serving.services import Services
from serving.settings import ServeConfig
from serving.startup import Startup

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp

    from serving.answering import Answerer
    from serving.stack import Stack

WATCH_S = 0.5


class App(Protocol):
    """What is mounted beside the API, at every path that is none of the API's; whoever calls `serve` brings it."""

    def load(self) -> None:
        """Import what it needs, while servers start."""
        ...

    def mount(self, gateway: FastAPI, cfg: ServeConfig, answerer: Answerer) -> FastAPI:
        """`gateway` with the app. `answerer` belongs to the event loop that will serve it."""
        ...


def serve(
    cfg: ServeConfig,
    *,
    engines: Sequence[str] = (),
    search: str | None = None,
    no_search: bool = False,
    app: App | None = None,
    state: Path,
    opened: Callable[[str], object] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then let answers in the making end for a few seconds and stop all that was started.

    `engines`, `search`: servers that run already, beside those that the config names. `app`: mounted beside the API, behind
    the same keys. `state`: a directory for logs and the search's store. `opened` is told the gateway's URL once all is ready.
    Raises UsageError and RunError before that; RunError after it if no engine can be kept running.
    """
    open_keys(cfg.gateway)  # what is wrong with them is said now, not in half a minute
    try:
        (state / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"{state} cannot be written ({e.strerror}): name another directory with --state") from None
    with (
        _bound(cfg) as sock,
        exit_on_signals(),  # SIGTERM during the start unwinds all of this, as Ctrl-C does
        Services(cfg, engines=engines, search=search, no_search=no_search, state=state, say=_say) as services,
    ):
        with Startup() as shown:
            if app is not None:
                app.load()  # which takes seconds that the engine's start hides
            while not services.check_start():
                shown.waiting(services.waiting)
                time.sleep(0.1)
            shown.waiting([])
        url = f"http://{_reachable(cfg.gateway.host)}:{sock.getsockname()[1]}"

        def ready(_: int) -> None:
            _announce(cfg, services, url, app=app is not None)
            if opened is not None:
                opened(url)

        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_gateway(cfg, services, sock, app=app, ready=ready))
        _say("stopping")


async def _gateway(
    cfg: ServeConfig, services: Services, sock: socket.socket, *, app: App | None, ready: Callable[[int], object]
) -> None:
    from serving.gateway.access import log_to
    from serving.gateway.app import create_app
    from serving.gateway.server import serve as serve_app
    from serving.stack import open_stack

    stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        if sys.stderr.isatty():  # a person reads there; a service's journal wants the lines
            log_to(stack.enter_context((services.logs / "gateway.log").open("a", buffering=1)))
        else:
            log_to(sys.stderr)
        base = await stack.enter_async_context(open_stack(cfg, engines=services.engines, search=services.search))
        gateway = create_app(cfg, base)
        served = gateway if app is None else _with_app(app, gateway, cfg, base)
        watch = asyncio.create_task(_watch(services, stop))
        stack.callback(watch.cancel)
        with _quiet():
            await serve_app(served, sock, ready=ready, stop=stop)
        if watch.done():
            watch.result()


def _with_app(app: App, gateway: FastAPI, cfg: ServeConfig, stack: Stack) -> ASGIApp:
    """The app beside the API, for whoever may use the API."""
    mounted = app.mount(gateway, cfg, stack.answerer)
    keys = open_keys(cfg.gateway)
    return mounted if keys is None else AppLogin(mounted, keys)


async def _watch(services: Services, stop: asyncio.Event) -> None:
    """Ends the gateway, with an error, once nothing can answer any more."""
    while True:
        try:
            services.check()
        except RunError:
            stop.set()
            raise
        await asyncio.sleep(WATCH_S)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """uvicorn raises a signal anew once it has drained. A server that was asked to end, and has, has ended well."""
    before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bound(cfg: ServeConfig) -> socket.socket:
    try:
        return bind(cfg.gateway.host, cfg.gateway.port)
    except RunError as e:
        raise RunError(f"gateway.port={cfg.gateway.port}: {e}") from None


def _reachable(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _announce(cfg: ServeConfig, services: Services, url: str, *, app: bool) -> None:
    asks = "   (asks for a password: an API key)" if cfg.gateway.keys else ""
    lines = [f"  app   {url}/{asks}"] if app else []
    lines += [f"  API   {url}/v1   models {cfg.name} and {cfg.name}:no-search", f"  logs  {services.logs}"]
    if len(services.engines) > 1:
        lines.append(f"  {len(services.engines)} engines; a conversation stays with the one that has its beginning cached")
    print("\n".join(["ready", *lines, "Ctrl-C ends all of it"]), flush=True)


def _say(line: str) -> None:
    print(f"mmsr1: {line}", file=sys.stderr, flush=True)
