"""The gateway's ASGI app. Every error is in OpenAI's envelope, unknown paths and methods included."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from megatron_mmsr1.search.fetch import Fetcher
from serving.gateway import openapi
from serving.gateway.access import Access
from serving.gateway.errors import ApiError, defect
from serving.gateway.exchange import Exchange
from serving.gateway.gateway import Gateway, no_model
from serving.gateway.metrics import CONTENT_TYPE
from serving.settings import ServeConfig
from serving.stack import Stack

PATHS = {"/v1/chat/completions": "POST", "/v1/models": "GET"}


def create_app(cfg: ServeConfig, stack: Stack, *, fetcher: Fetcher | None = None) -> FastAPI:
    """The API over `stack`, which its owner closes. `fetcher`: for users' pictures, in place of the config's own.

    An app may be mounted beside the API: it takes the paths that are none of the API's. Raises UsageError for keys that cannot
    be used, and where anybody could call for want of them.
    """
    gateway = Gateway(cfg, stack, fetcher=fetcher)
    app = FastAPI(title="Megatron-MMSearch-R1", docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.state.gateway = gateway
    app.add_middleware(Access, metrics=gateway.metrics, hosts=cfg.gateway.hosts if gateway.keys is None else None)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)
    _routes(app, gateway)
    openapi.install(app)
    return app


def _routes(app: FastAPI, g: Gateway) -> None:
    @app.post("/v1/chat/completions", **openapi.CHAT)
    async def chat_completions() -> Response:
        """A searched, sourced answer to a conversation."""
        return Exchange(g)

    @app.get("/v1/models", **openapi.MODELS)
    async def list_models(request: Request) -> Response:
        """The model, with searches and without."""
        g.caller(request.scope)
        return _json({"object": "list", "data": [_model(g, name) for name in g.models]})

    @app.get("/v1/models/{model:path}", **openapi.MODEL)
    async def retrieve_model(request: Request) -> Response:
        g.caller(request.scope)
        name = request.path_params["model"]
        if name not in g.models:
            raise no_model(name)
        return _json(_model(g, name))

    @app.get("/health", **openapi.HEALTH)
    async def health() -> Response:
        """Whether the gateway lives, and whether engines and search servers answer it."""
        found = await g.health()
        return _json(found, 503 if found["status"] == "unavailable" else 200)

    if g.cfg.gateway.metrics:

        @app.get("/metrics", **openapi.METRICS)
        async def metrics(request: Request) -> Response:
            """Prometheus's text format."""
            g.caller(request.scope)
            g.metrics.answering.set(g.limits.answering)
            g.metrics.waiting.set(g.limits.waiting)
            return Response(g.metrics.render(), media_type=CONTENT_TYPE)

    # An app that is mounted at the root would take these, and answer a client of the API with a page.
    @app.api_route("/v1/{rest:path}", methods=openapi.METHODS, include_in_schema=False)
    async def unknown(request: Request) -> Response:
        path = request.url.path
        allowed = PATHS.get(path) or ("GET" if path.startswith("/v1/models/") else None)
        if allowed is not None:
            raise HTTPException(405, headers={"Allow": allowed})
        raise HTTPException(404)


def _json(body: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


def _model(g: Gateway, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": g.created, "owned_by": "megatron-mmsr1"}


async def _api_error(_: Request, e: Exception) -> Response:
    if not isinstance(e, ApiError):
        raise e
    return e.response()


async def _http_error(request: Request, e: Exception) -> Response:
    """Starlette's own: an unknown path, a wrong method."""
    if not isinstance(e, HTTPException):
        raise e
    why, code = {
        404: ("there is nothing at this path", "not_found"),
        405: (f"{request.method} is not for this path", "method_not_allowed"),
    }.get(e.status_code, (str(e.detail), "error"))
    return ApiError(e.status_code, why, code=code, headers=dict(e.headers or {})).response()


async def _defect(_: Request, e: Exception) -> Response:
    """Starlette logs the trace."""
    return defect().response()
