"""Tavily: docs.tavily.com/documentation/api-reference/endpoint/search and help.tavily.com's list of error codes."""

from __future__ import annotations

from typing import Any

from megatron_mmsr1.search.backends.interfaces import TextResult
from megatron_mmsr1.trajectory import ToolStatus
from vendors.server import Asked, Reply, answer
from vendors.spec import KEY, Case, Spec

ROWS: list[dict[str, Any]] = [
    {"title": "Zurimo", "url": "https://towns.test/zurimo", "content": "a town", "score": 0.98, "raw_content": None},
    {"title": "Kadepi", "url": "https://towns.test/kadepi", "content": "another", "score": "high"},
    {"title": "x", "url": "ftp://towns.test/x", "content": "y", "score": 0.1},
]


def error(code: int, words: str) -> Reply:
    return answer({"detail": {"error": words}}, code)


def page(rows: list[dict[str, Any]]) -> Reply:
    return answer({"query": "q", "answer": None, "images": [], "results": rows, "response_time": 1.1, "request_id": "1"})


def found(asked: Asked) -> Reply:
    if asked.headers.get("authorization") != f"Bearer {KEY}":
        return error(401, "Unauthorized: missing or invalid API key.")
    body = asked.json()
    if (asked.method, asked.path) != ("POST", "/search") or not body.get("query") or not 0 <= body["max_results"] <= 20:
        return error(400, "Invalid request")
    raw = {"raw_content": "Zurimo is a town.\nIts river is nofevo."} if body.get("include_raw_content") else {}
    return page([{**row, **raw} for row in ROWS])


SPEC = Spec(
    kind="text",
    backend="tavily",
    key_name="TAVILY_API_KEY",
    found=found,
    gives=[
        TextResult("https://towns.test/zurimo", "Zurimo", "a town", 1.0),
        TextResult("https://towns.test/kadepi", "Kadepi", "another", 1 / 2),
    ],
    error=error,
    cases={
        "empty": Case(page([]), ToolStatus.OK, gives=[], billed=True),
        "bad request": Case(error(400, "Invalid topic."), ToolStatus.REFUSED),
        "bad key": Case(error(401, f"Unauthorized: invalid API key {KEY}"), ToolStatus.UPSTREAM_ERROR),
        "too many": Case(error(429, "Your request has been blocked due to excessive requests."), ToolStatus.RATE_LIMITED, 3),
        "the plan's limit": Case(error(432, "This request exceeds your plan's set usage limit."), ToolStatus.BUDGET),
        "pay as you go's limit": Case(error(433, "This request exceeds the pay-as-you-go limit."), ToolStatus.BUDGET),
        "server error": Case(error(500, "Internal Server Error"), ToolStatus.UPSTREAM_ERROR, tries=3),
    },
    unlike=([], {}, "words", 5, {"results": None}, {"results": {"url": "https://x.test"}}),
)
