"""Bodies on the wire: read within a cap and checked, written as JSON; the errors have the replies' form."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from megatron_mmsr1.search import wire as requests
from megatron_mmsr1.trajectory import ToolStatus

Body = dict[str, Any]


async def read_body(request: Request, limit: int = requests.MAX_BODY_BYTES) -> bytes:
    """The whole body. Raises HTTPException 413 past `limit` bytes, 400 for one that breaks off."""
    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise HTTPException(413, f"the body is larger than {limit} bytes")
            chunks.append(chunk)
    except ClientDisconnect:  # nobody reads this answer; the metrics count it
        raise HTTPException(400, "the connection ended before the body did") from None
    return b"".join(chunks)


def explain(e: ValidationError) -> str:
    """The first few things that are wrong with a request, each with its field."""
    errors = e.errors(include_input=False)[:5]
    return "; ".join(": ".join(filter(None, (".".join(str(p) for p in err["loc"]), err["msg"]))) for err in errors)


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
