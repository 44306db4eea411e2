"""Errors as OpenAI's clients expect them: one envelope, whatever went wrong."""

from __future__ import annotations

import math
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.responses import Response

# What cannot be honoured but at its default: the message says so, rather than what pydantic makes of it.
UNSUPPORTED = frozenset(
    [
        "tools",
        "tool_choice",
        "functions",
        "function_call",
        "n",
        "logprobs",
        "top_logprobs",
        "response_format",
        "modalities",
        "audio",
        "prediction",
        "top_p",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "stop",
        "store",
        "reasoning_effort",
        "verbosity",
        "web_search_options",
        "tool_calls",
    ]
)
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
NO_RETRY = {"x-should-retry": "false"}  # which OpenAI's clients obey


class ApiError(Exception):
    """What a caller is told. `code` is for programs, `param` names the part of the request that is meant."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    @property
    def envelope(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return Response(orjson.dumps(self.envelope), self.status, self.headers, "application/json")


def limited(message: str, code: str, retry_after_s: float, *, retry: bool = True) -> ApiError:
    headers = {"retry-after": str(max(1, math.ceil(retry_after_s)))}
    return ApiError(429, message, code=code, headers=headers | ({} if retry else NO_RETRY))


def defect() -> ApiError:
    return ApiError(500, "the gateway failed; its log has the trace under the request's id", code="internal_error")


def explain(e: ValidationError) -> ApiError:
    """The first few things that are wrong with a request, the first one as `param`; never what was sent."""
    errors = e.errors(include_input=False, include_url=False, include_context=False)
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {_short(first['msg'])}", code="invalid_json")
    param = _param(first["loc"])
    name = None if first["loc"][:1] == ("search",) else next((str(p) for p in first["loc"] if p in UNSUPPORTED), None)
    if name is not None:
        return ApiError(400, f"{name}: this gateway does not support it (only its default)", param=param, code="unsupported")
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
    said = dict.fromkeys(f"{_param(err['loc']) or 'body'}: {_short(err['msg'])}" for err in errors[:8])
    return ApiError(400, "; ".join(list(said)[:4]), param=param, code=code)


def _param(loc: tuple[int | str, ...]) -> str | None:
    """`messages[0].content` of pydantic's location, which also names the members of unions that it tried."""
    out = ""
    for part in loc:
        if isinstance(part, int):
            out += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "user", "system", "developer", "assistant"):
            out += f".{part}" if out else part
    return out[:200].encode("utf-8", "replace").decode() or None


def _short(message: str) -> str:
    return message[:200].encode("utf-8", "replace").decode()
