"""The search server's ASGI app: requests in, typed JSON out.

A call that was understood answers 200 and says in `status` what became of it, a failed search included: the server has done the
retrying that made sense. 4xx: the request itself is wrong. 429 and 503: not now. 500: a defect, logged with its traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import unquote

import orjson
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.search import wire as requests
from megatron_mmsr1.search.backends.tools import Tools
from megatron_mmsr1.search.backends.uploaders.signed_route import PREFIX, PublicFiles
from megatron_mmsr1.search.server.calls import Body, Caller, Calls, explain
from megatron_mmsr1.search.server.compose import describe, open_all
from megatron_mmsr1.search.server.metrics import Metrics
from megatron_mmsr1.search.store.cache import Cache
from megatron_mmsr1.search.upstream.ledger import Account, Ledger
from megatron_mmsr1.trajectory import ToolStatus

MAX_ID_CHARS = 512
BATCH_TYPE = "text/plain; charset=utf-8"


class SearchApp:
    """The endpoints over one `Calls`."""

    def __init__(self, cfg: SearchConfig, cache_path: Path | None):
        self._cfg, self._started = cfg, time.monotonic()
        self._metrics = Metrics()
        self._ledger = Ledger(_ledger_path(cfg, cache_path), cfg.budget)
        self._public = PublicFiles()
        backends, store = open_all(cfg, cache_path, Tools(cfg, self._metrics, self._ledger, self._public))
        m = self._metrics
        self._calls = Calls(cfg, backends, Cache(store, cfg.mode, m.store_errors.inc, m.replay_misses.inc), m)
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
    async def _lifespan(self, _: Starlette) -> AsyncGenerator[None]:
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
        asked = parse_batch(await read_body(request, requests.MAX_BATCH_BYTES))
        return StreamingResponse(run_batch(self._calls, asked, _account(request)), media_type=BATCH_TYPE)

    async def _retrieve(self, request: Request) -> Response:
        reply = await self._calls.answer("retrieve", await read_body(request), Caller(_account(request)))
        if reply["status"] is not ToolStatus.OK:  # the contract has no other place to say it
            return fail(502, reply["status"], reply["detail"])
        return respond({"result": reply["result"]})

    async def _stats(self, _: Request) -> Response:
        """Counts since the server started; `spend` is the ledger's, over all of its life."""
        held = describe(self._calls.cache, self._calls.backends)
        return respond(
            {
                "mode": held["mode"],
                "seconds": round(time.monotonic() - self._started, 3),
                "in_flight": self._calls.in_flight,
                "snapshot": {"id": held["id"], "entries": held["entries"]},
                "backends": held["backends"],
                "upstreams": {name: m.plain() for name, m in self._metrics.upstreams.held.items()},
                **self._metrics.plain(),
                "budget": self._cfg.budget.model_dump(exclude={"ledger"}, exclude_none=True),
                "spend": self._ledger.spent(),
            }
        )

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


# ----------------------------------------------------------------------------------------------------------------------- bodies
async def read_body(request: Request, limit: int = requests.MAX_BODY_BYTES) -> bytes:
    """The whole body. Raises HTTPException 413 past `limit` bytes, 400 for one that breaks off."""
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise HTTPException(413, f"the body is larger than {limit} bytes")
            chunks.append(chunk)
    except ClientDisconnect:  # nobody reads this answer; the metrics count it
        raise HTTPException(400, "the connection ended before the body did") from None
    return b"".join(chunks)


def respond(body: Body, code: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), code, headers, "application/json")


def fail(code: int, status: ToolStatus, detail: str, headers: dict[str, str] | None = None) -> Response:
    return respond({"status": status, "detail": detail}, code, headers)


async def http_error(_: Request, e: Exception) -> Response:
    """Starlette's handler of HTTPException: an unknown path, a wrong method, a body that is refused."""
    if not isinstance(e, HTTPException):
        raise e
    return fail(e.status_code, ToolStatus.REFUSED, e.detail, dict(e.headers or {}))


async def defect(_: Request, e: Exception) -> Response:
    """Starlette's handler of everything else: the caller gets a typed error, the log its traceback."""
    return fail(500, ToolStatus.UPSTREAM_ERROR, f"the search server failed ({type(e).__name__}); its log has the trace")


# ------------------------------------------------------------------------------------------------------------------------ batch
def parse_batch(body: bytes) -> requests.BatchRequest:
    """Raises HTTPException 400 for what is no batch; a single bad call in it is only that call's failure."""
    try:
        return requests.BatchRequest.model_validate_json(body)
    except ValidationError as e:
        raise HTTPException(400, explain(e)) from None


async def run_batch(calls: Calls, batch: requests.BatchRequest, who: Account) -> AsyncIterator[bytes]:
    """The reply's lines, each call's as it is done: `PLACE CODE JSON`, PLACE being the call's place in the request, CODE and
    JSON what its own endpoint would have answered. A step's thousands of searches cost a tenth of what as many requests would.

    Should the caller go away, the calls end with it (what they wait for goes on, for others)."""
    done: asyncio.Queue[bytes] = asyncio.Queue()

    async def one(place: int, call: requests.BatchedCall) -> None:
        code, reply = await _answer(calls, call, Caller(who, call.call))
        done.put_nowait(b"%d %d %b\n" % (place, code, reply))

    loop = asyncio.get_running_loop()
    # Eager: what the store holds is answered before the first of the others waits.
    tasks = [asyncio.Task(one(n, c), loop=loop, eager_start=True) for n, c in enumerate(batch.calls)]
    try:
        left = len(tasks)
        while left:
            lines = [await done.get()]
            while not done.empty():
                lines.append(done.get_nowait())
            left -= len(lines)
            yield b"".join(lines)
    finally:
        for t in tasks:
            t.cancel()


async def _answer(calls: Calls, call: requests.BatchedCall, caller: Caller) -> tuple[int, bytes]:
    """Always an answer: a call without one would hold up its batch for ever."""
    try:
        return 200, orjson.dumps(await calls.answer(call.op, call.body, caller))
    except HTTPException as e:
        status = ToolStatus.RATE_LIMITED if e.status_code == 429 else ToolStatus.REFUSED
        return e.status_code, orjson.dumps({"status": status, "detail": e.detail})
    except Exception as e:  # a defect costs its call, not the batch
        logging.getLogger(__name__).exception("a call of a batch failed")
        why = f"the search server failed ({type(e).__name__}); its log has the trace"
        return 500, orjson.dumps({"status": ToolStatus.UPSTREAM_ERROR, "detail": why})
