"""The Brave Search API (api.search.brave.com)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from megatron_mmsr1.config.search import TextSection
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.search.backends.interfaces import SearchFailure, TextResult, listed, results, version
from megatron_mmsr1.search.backends.tools import Tools, endpoint
from megatron_mmsr1.search.upstream.secrets import Secret
from megatron_mmsr1.search.upstream.upstream import Ask, Upstream, message
from megatron_mmsr1.trajectory import ToolStatus

URL = "https://api.search.brave.com/res/v1"
MAX_COUNT = 20
QUERY_CHARS, QUERY_WORDS = 400, 50  # beyond either the API refuses the query


class Options(Section):
    safesearch: Literal["off", "moderate", "strict"] = "moderate"


def make(section: TextSection, tools: Tools) -> Brave:
    key = tools.key(section, "BRAVE_API_KEY")
    options = tools.options(section, Options, "search.text")
    return Brave(section, options, endpoint(section, "search.text", URL), key, tools.upstream("brave", section, key))


class Brave:
    """GET /web/search. At most MAX_COUNT results; a query past the API's limits is cut to the words that fit."""

    name = "brave"
    local = False

    def __init__(self, section: TextSection, options: Options, url: str, key: Secret, upstream: Upstream):
        self._url, self._key, self._upstream = url, key, upstream
        self._params = {
            "country": section.country.upper(),
            "search_lang": section.language,
            "safesearch": options.safesearch,
            "text_decorations": "false",  # else <strong> stands in the snippets
            "result_filter": "web",
        }
        self.version = version(1, **self._params)

    async def search(self, query: str, k: int) -> Sequence[TextResult]:
        params = {**self._params, "q": fitting(query), "count": min(k, MAX_COUNT)}
        headers = {"accept": "application/json"}
        ask = Ask("GET", f"{self._url}/web/search", params, headers, secret_headers={"x-subscription-token": self._key})
        return await self._upstream.call(ask, lambda said: _read(said, k), explain)

    async def close(self) -> None:
        await self._upstream.close()


def fitting(query: str) -> str:
    """The first words of a query that keep both limits; of a single longer word what fits."""
    words = list(re.finditer(r"\S+", query))[:QUERY_WORDS]
    ends = [w.end() for w in words if w.end() - words[0].start() <= QUERY_CHARS]
    if not words:
        return query
    return query[words[0].start() : ends[-1]] if ends else words[0].group()[:QUERY_CHARS]


def explain(code: int, said: Any) -> SearchFailure | None:
    """400 and 422 are said of bad queries, and of keys and plans; 429 of a rate, which passes, and of a month's quota."""
    if code not in (400, 422, 429):
        return None
    error = said["error"] if "error" in said else said["errors"][0]
    if error["code"] == "QUOTA_LIMITED":
        return SearchFailure(ToolStatus.BUDGET, f"brave: {message(error)}")
    at_fault = [str(e.get("loc", "")) for e in error.get("meta", {}).get("errors", [])]
    named = "TOKEN" in error["code"] or "PLAN" in error["code"]
    if code != 429 and (named or any("x-subscription-token" in loc for loc in at_fault)):
        return SearchFailure(ToolStatus.UPSTREAM_ERROR, f"brave refuses the API key or its plan: {message(error)}")
    return None


def _read(said: Any, k: int) -> list[TextResult]:
    if "web" not in said and said["type"] != "search":  # a search that found no page has no `web`
        raise ValueError("neither results nor a search")
    rows = listed(said["web"]["results"] if "web" in said else [])
    return results(rows, k, link="url", title="title", snippet="description")
