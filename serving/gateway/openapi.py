"""The OpenAPI document: exact models of requests and answers, and only the statuses that occur."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.gateway import replies
from serving.gateway.schema import ChatRequest

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"]
_ABOUT = "Chat completions whose answers are searched for, with their sources. Errors are in OpenAI's envelope."
_REF = "#/components/schemas/{model}"
_WHY = {
    400: "the request cannot be answered as it is; `param` names what is meant",
    401: "no API key, or one that is not known",
    403: "called by a name that is not the gateway's",
    404: "no such model",
    408: "the body did not come in time",
    413: "the body is too large",
    415: "the body is not application/json",
    429: "a limit is reached; see Retry-After",
    500: "a defect of the gateway",
    503: "no engine, no search, or no answer in time",
}
# Documented by hand: FastAPI learns models from what a route returns, and these write their answers themselves.
_MODELS: list[type[BaseModel]] = [replies.ErrorEnvelope, replies.ChatCompletion, replies.ChatCompletionChunk]
_MODELS += [replies.ModelList, replies.Model, replies.Health]


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}


def _answers(ok: dict[str, Any], *errors: int, description: str = "OK") -> dict[int | str, dict[str, Any]]:
    out: dict[int | str, dict[str, Any]] = {200: {"description": description, "content": ok}}
    for status in errors:
        out[status] = {"description": _WHY[status], "content": _json(replies.ErrorEnvelope)}
        if status == 429:
            out[status]["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "string"}}}
    return out


_STREAM = {
    "text/event-stream": {
        "schema": {
            "type": "string",
            "description": "with `stream`: events, each a ChatCompletionChunk, the last one [DONE]; an error that comes later"
            " than the status is an event with the envelope of errors",
        }
    }
}
CHAT: dict[str, Any] = {
    "tags": ["chat"],
    "response_model": None,
    "responses": _answers(_json(replies.ChatCompletion) | _STREAM, 400, 401, 403, 404, 408, 413, 415, 429, 500, 503),
    "openapi_extra": {"requestBody": {"required": True, "content": _json(ChatRequest)}},
}
MODELS: dict[str, Any] = {
    "tags": ["models"],
    "response_model": None,
    "responses": _answers(_json(replies.ModelList), 401, 403, 500),
}
MODEL: dict[str, Any] = {
    "tags": ["models"],
    "response_model": None,
    "responses": _answers(_json(replies.Model), 401, 403, 404, 500),
    "openapi_extra": {"parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]},
}
_UNAVAILABLE = {503: {"description": "no engine answers", "content": _json(replies.Health)}}
HEALTH: dict[str, Any] = {
    "tags": ["operation"],
    "response_model": None,
    "responses": _answers(_json(replies.Health), 403, 500) | _UNAVAILABLE,
}
METRICS: dict[str, Any] = {
    "tags": ["operation"],
    "response_model": None,
    "responses": _answers({"text/plain": {"schema": {"type": "string"}}}, 401, 403, 500),
}


def install(app: FastAPI) -> None:
    """Let `app.openapi` make the document; what is mounted beside the API is not in it."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    doc = get_openapi(title=app.title, version="1", description=_ABOUT, routes=app.routes)
    for path in doc["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)  # FastAPI's own: ours is 400
    _, defs = models_json_schema([(m, "validation") for m in (ChatRequest, *_MODELS)], ref_template=_REF)
    parts = doc.setdefault("components", {})
    parts["schemas"] = defs["$defs"]
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "where the gateway has keys"}}
    doc["security"] = [{}, {"key": []}]
    return doc
