"""Serper, google.serper.dev/search: serper.dev's playground, and the errors that its users report."""

from __future__ import annotations

from typing import Any

from megatron_mmsr1.search.backends.interfaces import TextResult
from megatron_mmsr1.trajectory import ToolStatus
from vendors.server import Asked, Reply, answer
from vendors.spec import KEY, Case, Spec

ROWS: list[dict[str, Any]] = [
    {"title": "Zurimo", "link": "https://towns.test/zurimo", "snippet": "a town", "position": 1, "date": "1614"},
    {"title": "Kadepi", "link": "https://towns.test/kadepi", "position": 2},
    {"title": "nowhere", "snippet": "x", "position": 3},
]


def error(code: int, words: str) -> Reply:
    return answer({"message": words, "statusCode": code}, code)


def page(rows: list[dict[str, Any]]) -> Reply:
    return answer({"searchParameters": {"type": "search", "engine": "google"}, "organic": rows, "credits": 1})


def found(asked: Asked) -> Reply:
    if asked.headers.get("x-api-key") != KEY:
        return error(403, "Unauthorized.")
    if (asked.method, asked.path) != ("POST", "/search") or not asked.json().get("q"):
        return error(400, "Missing query parameter")
    return page(ROWS)


SPEC = Spec(
    kind="text",
    backend="serper",
    key_name="SERPER_API_KEY",
    found=found,
    gives=[
        TextResult("https://towns.test/zurimo", "Zurimo", "a town", 1.0),
        TextResult("https://towns.test/kadepi", "Kadepi", "", 1 / 2),
    ],
    error=error,
    cases={
        "empty": Case(page([]), ToolStatus.OK, gives=[], billed=True),
        "bad key": Case(error(403, f"Unauthorized: {KEY}"), ToolStatus.UPSTREAM_ERROR),
        "bad request": Case(error(400, "Missing query parameter"), ToolStatus.REFUSED),
        "out of credits": Case(error(400, "Not enough credits"), ToolStatus.BUDGET),
        "too many": Case(error(429, "Too many requests"), ToolStatus.RATE_LIMITED, tries=3),
        "server error": Case(error(500, "Internal server error"), ToolStatus.UPSTREAM_ERROR, tries=3),
    },
    unlike=([], {}, "words", 5, {"organic": None}, {"organic": {"0": {}}}, {"organic": "x"}),
)
