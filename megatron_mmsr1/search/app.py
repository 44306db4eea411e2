"""The search server's ASGI app: requests in, typed JSON out.

A call that was understood answers 200 and says in `status` what became of it, a failed search included: the server has done the
retrying that made sense. 4xx: the request itself is wrong. 429 and 503: not now. 500: a defect, logged with its traceback.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.search import requests
from megatron_mmsr1.search.bodies import Body, defect, fail, http_error, read_body, respond
from megatron_mmsr1.search.cache import Cache
from megatron_mmsr1.search.compose import Backends, compose
from megatron_mmsr1.search.interfaces import Backend, SearchFailure
from megatron_mmsr1.search.metrics import Metrics
from megatron_mmsr1.search.pipelines import Hits, ImageSearch, TextSearch
from megatron_mmsr1.search.retrieve import retrieve
from megatron_mmsr1.search.store import Store
from megatron_mmsr1.trajectory import ToolStatus

CALL_DEADLINE_S = 30.0
MAX_IN_FLIGHT = 16_384  # beyond it a call is answered 429 at once, rather than all of them late


class SearchApp:
    """The endpoints over one set of backends, one cache and one set of metrics."""

    def __init__(self, backends: Backends, store: Store | None):
        self._backends = backends
        self._metrics = Metrics()
        self._cache = Cache(store, self._metrics.store_errors.inc)
        self._text = TextSearch(backends.text, backends.reader, backends.summariser, self._cache)
        self._image = None if backends.image is None else ImageSearch(backends.image, self._cache)
        self._in_flight = 0
        self._ready = False

    def asgi(self) -> Starlette:
        def post(path: str, kind: str, model: type[requests.Request], answer: Callable[[Any], Awaitable[Body]]) -> Route:
            return Route(path, self._endpoint(kind, model, answer), methods=["POST"])

        return Starlette(
            routes=[
                post("/v1/search/text", "text", requests.TextRequest, self._search_text),
                post("/v1/search/image", "image", requests.ImageRequest, self._search_image),
                post("/v1/read", "read", requests.ReadRequest, self._read),
                post("/v1/summarise", "summarise", requests.SummariseRequest, self._summarise),
                post("/retrieve", "retrieve", requests.RetrieveRequest, self._retrieve),
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
        await self._cache.close()
        for backend in self._backends.all():
            await backend.close()

    # ------------------------------------------------------------------------------------------------------------ answers
    async def _search_text(self, r: requests.TextRequest) -> Body:
        return _found(await self._text(r.query, r.k), self._backends.text)

    async def _search_image(self, r: requests.ImageRequest) -> Body:
        try:
            image = binascii.a2b_base64(r.image_base64, strict_mode=True)
        except ValueError as e:  # binascii.Error is one; a character outside ASCII is another
            raise HTTPException(400, f"image_base64: {e}") from None
        if self._image is None:
            raise SearchFailure(ToolStatus.REFUSED, "this server has no image index (no images.jsonl in search.corpus)")
        return _found(await self._image(image, r.k), self._image.backend)

    async def _read(self, r: requests.ReadRequest) -> Body:
        page = await self._backends.reader.read(r.url)
        status = ToolStatus.OK if page.text else ToolStatus.EMPTY
        return {
            "status": status,
            "url": page.url,
            "title": page.title,
            "text": page.text,
            "backend": self._backends.reader.name,
        }

    async def _summarise(self, r: requests.SummariseRequest) -> Body:
        summary = await self._backends.summariser.summarise(r.query, r.text)
        status = ToolStatus.OK if summary else ToolStatus.EMPTY
        return {"status": status, "summary": summary, "backend": self._backends.summariser.name}

    async def _retrieve(self, r: requests.RetrieveRequest) -> Body:
        return await retrieve(self._backends.text, self._backends.reader, r)

    # ----------------------------------------------------------------------------------------------------------- plumbing
    def _endpoint(
        self, kind: str, model: type[requests.Request], answer: Callable[[Any], Awaitable[Body]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            if self._in_flight >= MAX_IN_FLIGHT:
                self._metrics.record(kind, ToolStatus.RATE_LIMITED, 0.0)
                return fail(429, ToolStatus.RATE_LIMITED, f"{MAX_IN_FLIGHT} calls in flight", {"retry-after": "1"})
            self._in_flight += 1
            self._metrics.in_flight.set(self._in_flight)
            started = time.perf_counter()
            status, cached = ToolStatus.UPSTREAM_ERROR, False
            try:
                body = await self._answer(await read_body(request, model), answer)
                status, cached = body.get("status", ToolStatus.OK), body.get("cached", False)
                if kind == "retrieve":
                    return fail(502, status, body["detail"]) if "detail" in body else respond(body)
                return respond({"seconds": time.perf_counter() - started, **body})
            except HTTPException:
                status = ToolStatus.REFUSED
                raise
            finally:
                self._in_flight -= 1
                self._metrics.in_flight.set(self._in_flight)
                self._metrics.record(kind, status, time.perf_counter() - started, cached=cached)

        return endpoint

    async def _answer(self, request: requests.Request, answer: Callable[[Any], Awaitable[Body]]) -> Body:
        try:
            async with asyncio.timeout(CALL_DEADLINE_S):
                return await answer(request)
        except SearchFailure as e:
            return {"status": e.status, "detail": e.detail}
        except TimeoutError:
            return {"status": ToolStatus.TIMEOUT, "detail": f"no result within {CALL_DEADLINE_S:g} s"}

    async def _healthz(self, _: Request) -> Response:
        return respond({"status": "ok"})

    async def _readyz(self, _: Request) -> Response:
        return respond({"status": "ready" if self._ready else "draining"}, 200 if self._ready else 503)

    async def _render_metrics(self, _: Request) -> Response:
        return Response(self._metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


def build_app(cfg: SearchConfig, cache_path: Path | None) -> Starlette:
    """The app over the config's backends, indexes loaded; `cache_path` None keeps no cache.

    Raises UsageError (config, corpus) or RunError (the cache file).
    """
    return SearchApp(compose(cfg), None if cache_path is None else Store(cache_path)).asgi()


def _found(hits: Hits, backend: Backend) -> Body:
    return {"status": hits.status, "hits": orjson.Fragment(hits.json), "cached": hits.cached, "backend": backend.name}
