"""SearXNG: docs.searxng.org/dev/search_api.html and admin/settings/settings_search.html."""

from __future__ import annotations

from typing import Any

from megatron_mmsr1.search.backends.interfaces import TextResult
from megatron_mmsr1.trajectory import ToolStatus
from vendors.server import Asked, Reply, answer
from vendors.spec import KEY, Case, Spec

ROWS: list[dict[str, Any]] = [
    {"url": "https://towns.test/zurimo", "title": "Zurimo", "content": "a town", "engine": "brave", "score": 1.8},
    {"url": "https://towns.test/kadepi", "title": "Kadepi", "content": None, "img_src": "x"},
    {"title": "an answer without a page", "content": "x"},
]


def html(code: int, words: str) -> Reply:
    return Reply(
        f"<!doctype html><title>{code}</title><p>{words}</p>".encode(), code, {"content-type": "text/html; charset=utf-8"}
    )


def page(rows: list[dict[str, Any]], silent: Any = ()) -> Reply:
    extra = {"answers": [], "corrections": [], "infoboxes": [], "suggestions": [], "unresponsive_engines": silent}
    return answer({"query": "q", "number_of_results": len(rows), "results": rows, **extra})


def found(asked: Asked) -> Reply:
    if asked.headers.get("authorization", f"Bearer {KEY}") != f"Bearer {KEY}":
        return html(401, "Unauthorized")
    if (asked.method, asked.path) != ("GET", "/search") or not asked.query.get("q"):
        return html(400, "No query")
    if asked.query.get("format") != "json":
        return html(200, "results for people")
    return page(ROWS)


SUSPENDED = [["brave", "Suspended: too many requests"], ["google", "CAPTCHA"]]
SPEC = Spec(
    kind="text",
    backend="searxng",
    key_name="SEARXNG_API_KEY",
    found=found,
    gives=[
        TextResult("https://towns.test/zurimo", "Zurimo", "a town", 1.0),
        TextResult("https://towns.test/kadepi", "Kadepi", "", 1 / 2),
    ],
    error=html,
    cases={
        "empty": Case(page([]), ToolStatus.OK, gives=[], billed=True),
        "its engines are suspended": Case(page([], SUSPENDED), ToolStatus.RATE_LIMITED),
        "engines of another form": Case(page([], ["brave", 5, ["x"]]), ToolStatus.RATE_LIMITED),
        "some engines are suspended": Case(
            page(ROWS[:1], SUSPENDED),
            ToolStatus.OK,
            gives=[TextResult("https://towns.test/zurimo", "Zurimo", "a town", 1.0)],
            billed=True,
        ),
        "json is off": Case(html(403, "Forbidden"), ToolStatus.UPSTREAM_ERROR),
        "bad key": Case(html(401, f"Unauthorized {KEY}"), ToolStatus.UPSTREAM_ERROR),
        "bad request": Case(html(400, "No query"), ToolStatus.REFUSED),
        "its limiter": Case(html(429, "Too Many Requests"), ToolStatus.RATE_LIMITED, tries=3),
        "server error": Case(html(500, "Internal Server Error"), ToolStatus.UPSTREAM_ERROR, tries=3),
    },
    unlike=([], {}, "words", 5, {"results": None}, {"results": "x"}),
)
