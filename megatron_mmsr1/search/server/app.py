"""The search server's ASGI app: requests in, typed JSON out.

A call that was understood answers 200 and says in `status` what became of it, a failed search included: the server has done the
retrying that made sense. 4xx: the request itself is wrong. 429 and 503: not now. 500: a defect, logged with its traceback.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.search import wire as requests
from megatron_mmsr1.search.backends.check import Tools
from megatron_mmsr1.search.server import batch
from megatron_mmsr1.search.server.bodies import defect, fail, http_error, read_body, respond
from megatron_mmsr1.search.server.calls import Caller, Calls
from megatron_mmsr1.search.server.metrics import Metrics
from megatron_mmsr1.search.server.stats import State
from megatron_mmsr1.search.store.cache import Cache
from megatron_mmsr1.search.store.snapshots import describe, open_all
from megatron_mmsr1.search.upstream.ledger import Account, Ledger
from megatron_mmsr1.search.web.public import PREFIX, PublicFiles
from megatron_mmsr1.trajectory import ToolStatus

MAX_ID_CHARS = 512


class SearchApp:
    """The endpoints over one `Calls`."""

    def __init__(self, cfg: SearchConfig, cache_path: Path | None):
        self._metrics = Metrics()
        self._ledger = Ledger(_ledger_path(cfg, cache_path), cfg.budget)
        self._public = PublicFiles()
        backends, store = open_all(cfg, cache_path, Tools(cfg, self._metrics, self._ledger, self._public))
        m = self._metrics
        self._calls = Calls(cfg, backends, Cache(store, cfg.mode, m.store_errors.inc, m.replay_misses.inc), m)
        self._state = State(cfg, self._calls, self._ledger, m)
        self._ready = False

    def asgi(self) -> Starlette:
        def post(path: str, op: str) -> Route:
            return Route(path, self._endpoint(op), methods=["POST"])

        return Starlette(
            routes=[
                post("/v1/search/text", "text"),
                post("/v1/search/image", "image"),
                post("/v1/read", "read"),
                post("/v1/summarise", "summarise"),
                Route("/v1/batch", self._batch, methods=["POST"]),
                Route("/v1/stats", self._stats),
                Route("/v1/snapshot", self._snapshot),
                Route(PREFIX + "{id}", self._public.serve, methods=["GET"]),
                Route("/retrieve", self._retrieve, methods=["POST"]),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._render_metrics),
            ],
            exception_handlers={HTTPException: http_error, Exception: defect},
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._ready = True
        yield
        self._ready = False
        await self._calls.cache.close()
        for backend in self._calls.backends.all():
            await backend.close()
        self._ledger.close()

    # --------------------------------------------------------------------------------------------------------- endpoints
    def _endpoint(self, op: str) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            caller = Caller(_account(request), request.headers.get("x-mmsr1-call", "")[:MAX_ID_CHARS])
            return respond(await self._calls.answer(op, await read_body(request), caller))

        return endpoint

    async def _batch(self, request: Request) -> Response:
        asked = batch.parse(await read_body(request, requests.MAX_BATCH_BYTES))
        return StreamingResponse(batch.run(self._calls, asked, _account(request)), media_type=batch.MEDIA_TYPE)

    async def _retrieve(self, request: Request) -> Response:
        reply = await self._calls.answer("retrieve", await read_body(request), Caller(_account(request)))
        if reply["status"] is not ToolStatus.OK:  # the contract has no other place to say it
            return fail(502, reply["status"], reply["detail"])
        return respond({"result": reply["result"]})

    async def _stats(self, _: Request) -> Response:
        return respond(self._state.stats())

    async def _snapshot(self, _: Request) -> Response:
        return respond(describe(self._calls.cache, self._calls.backends))

    async def _healthz(self, _: Request) -> Response:
        return respond({"status": "ok"})

    async def _readyz(self, _: Request) -> Response:
        return respond({"status": "ready" if self._ready else "draining"}, 200 if self._ready else 503)

    async def _render_metrics(self, _: Request) -> Response:
        self._metrics.in_flight.set(self._calls.in_flight)
        return Response(self._metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


def build_app(cfg: SearchConfig, cache_path: Path | None) -> Starlette:
    """The app over the config's backends, indexes loaded; `cache_path` None keeps no cache.

    Raises UsageError (config, corpus, keys) or RunError (the store or the ledger).
    """
    return SearchApp(cfg, cache_path).asgi()


def _account(request: Request) -> Account:
    """A run (percent-encoded, as a header is ASCII) and its step, as the trainer's client names them. HTTPException 400 for a
    step that is no number."""
    run, step = unquote(request.headers.get("x-mmsr1-run", ""))[:MAX_ID_CHARS], request.headers.get("x-mmsr1-step", "-1")
    if not step.removeprefix("-").isdecimal() or len(step) > 18:
        raise HTTPException(400, "x-mmsr1-step must be a whole number")
    return Account(run, int(step))


def _ledger_path(cfg: SearchConfig, cache_path: Path | None) -> Path | None:
    if cfg.mode == "replay-strict":  # nothing is spent, and beside a snapshot nothing need be writable
        return None
    if cfg.budget.ledger is not None:
        return Path(cfg.budget.ledger)
    return None if cache_path is None else cache_path.with_name(cache_path.name + ".ledger")
