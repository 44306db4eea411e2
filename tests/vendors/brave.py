"""The Brave Search API: api-dashboard.search.brave.com, "Web search", "Rate limiting", and the error model."""

from __future__ import annotations

from typing import Any

from megatron_mmsr1.search.backends.interfaces import TextResult
from megatron_mmsr1.trajectory import ToolStatus
from vendors.server import Asked, Reply, answer
from vendors.spec import KEY, Case, Spec

ROWS: list[dict[str, Any]] = [
    {"title": "Zurimo", "url": "https://towns.test/zurimo", "description": "a town", "type": "search_result"},
    {"title": "Kadepi", "url": None, "description": "x"},
    {"title": "Vofuna", "url": "https://towns.test/vofuna", "description": None},
]
MONTH = 1_419_704


def fault(status: int, code: str, words: str, *, old: bool = False, **more: Any) -> Reply:
    """`old`: the envelope as the reference's examples have it, a list; the live one holds one `error`."""
    said = {"id": "5d83", "code": code, "detail": words, "status": status, **more}
    envelope = {"errors": [said]} if old else {"error": said}
    return answer({"type": "ErrorResponse", **envelope, "time": 1_663_072_993}, status)


def error(code: int, words: str) -> Reply:
    return fault(code, "OTHER", words)


def page(rows: list[dict[str, Any]] | None) -> Reply:
    web = {} if rows is None else {"web": {"type": "search", "results": rows}}
    return answer({"type": "search", "query": {"original": "q"}, **web})


def limited(left: str, reset: str) -> Reply:
    reply = fault(429, "RATE_LIMITED", "Request rate limit exceeded for plan.")
    headers = {"x-ratelimit-limit": "1, 15000", "x-ratelimit-remaining": left, "x-ratelimit-reset": reset}
    return Reply(reply.body, 429, {**reply.headers, **headers})


def found(asked: Asked) -> Reply:
    if asked.headers.get("x-subscription-token") != KEY:
        return fault(422, "SUBSCRIPTION_TOKEN_INVALID", "The provided subscription token is invalid.")
    q = asked.query.get("q", "")
    if (asked.method, asked.path) != ("GET", "/web/search") or not 0 < len(q) <= 400 or len(q.split()) > 50:
        return fault(422, "VALIDATION", "Unable to validate request parameter(s)")
    return page(ROWS)


BAD_HEADER = {"errors": [{"loc": ["header", "x-subscription-token"], "msg": "field required"}]}
BAD_QUERY = {"errors": [{"loc": ["query", "q"], "msg": "too long"}]}
INVALID, UNSURE = "SUBSCRIPTION_TOKEN_INVALID", "Unable to validate request parameter(s)"
SPEC = Spec(
    kind="text",
    backend="brave",
    key_name="BRAVE_API_KEY",
    found=found,
    gives=[
        TextResult("https://towns.test/zurimo", "Zurimo", "a town", 1.0),
        TextResult("https://towns.test/vofuna", "Vofuna", "", 1 / 2),
    ],
    error=error,
    cases={
        "empty": Case(page([]), ToolStatus.OK, gives=[], billed=True),
        "empty, without web": Case(page(None), ToolStatus.OK, gives=[], billed=True),
        "bad key": Case(fault(422, INVALID, f"The token {KEY} is invalid."), ToolStatus.UPSTREAM_ERROR),
        "bad key, as in the reference": Case(fault(422, INVALID, "is invalid.", old=True), ToolStatus.UPSTREAM_ERROR),
        "no key": Case(fault(422, "VALIDATION", UNSURE, meta=BAD_HEADER), ToolStatus.UPSTREAM_ERROR),
        "no subscription": Case(fault(404, "SUBSCRIPTION_NOT_FOUND", "No subscription found."), ToolStatus.UPSTREAM_ERROR),
        "not in the plan": Case(fault(400, "OPTION_NOT_IN_PLAN", "not in your plan"), ToolStatus.UPSTREAM_ERROR),
        "bad request": Case(fault(422, "VALIDATION", UNSURE, meta=BAD_QUERY), ToolStatus.REFUSED),
        "too many a second": Case(limited("0, 1000", "0, 1419704"), ToolStatus.RATE_LIMITED, tries=3),
        "a window used up for long": Case(limited("1, 0", f"1, {MONTH}"), ToolStatus.RATE_LIMITED),
        "quota": Case(fault(429, "QUOTA_LIMITED", "Request quota limit exceeded for plan."), ToolStatus.BUDGET),
        "server error": Case(fault(500, "INTERNAL", "oops"), ToolStatus.UPSTREAM_ERROR, tries=3),
    },
    unlike=([], {}, "words", 5, {"web": None}, {"web": {"results": 5}}, {"type": "videos", "results": []}, {"web": {}}),
)
