"""A SearXNG server of your own (docs.searxng.org), which asks other engines. Its settings.yml must list json under
search.formats; public instances seldom do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from megatron_mmsr1.config.search import TextSection
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.search.backends.interfaces import SearchFailure, TextResult, listed, results, version, words
from megatron_mmsr1.search.backends.tools import Tools, endpoint
from megatron_mmsr1.search.upstream.secrets import Secret
from megatron_mmsr1.search.upstream.upstream import Ask, Upstream
from megatron_mmsr1.trajectory import ToolStatus
from megatron_mmsr1.untyped import is_list


class Options(Section):
    """SearXNG's own parameters of these names; empty: the server's choice."""

    engines: list[str] = Field(default_factory=list)
    categories: list[str] = Field(default_factory=list)
    safesearch: Literal[0, 1, 2] = 0


def make(section: TextSection, tools: Tools) -> SearXng:
    key = tools.optional_key(section, "SEARXNG_API_KEY")
    options = tools.options(section, Options, "search.text")
    upstream = tools.upstream("searxng", section, *([key] if key else []))
    return SearXng(section, options, endpoint(section, "search.text"), key, upstream)


class SearXng:
    """GET /search?format=json. A server behind a password takes it in its URL; a key is sent as a bearer token.

    One page is asked for: how many results it has is the server's choice. The section's country does not apply.
    """

    name = "searxng"
    local = False

    def __init__(self, section: TextSection, options: Options, url: str, key: Secret | None, upstream: Upstream):
        self._url, self._key, self._upstream = url, key, upstream
        lists = {"engines": ",".join(options.engines), "categories": ",".join(options.categories)}
        self._params = {"language": section.language, "safesearch": options.safesearch}
        self._params |= {name: value for name, value in lists.items() if value}
        self.version = version(1, **self._params)

    async def search(self, query: str, k: int) -> Sequence[TextResult]:
        ask = Ask("GET", f"{self._url}/search", {**self._params, "q": query, "format": "json"}, bearer=self._key)
        return await self._upstream.call(ask, lambda said: _read(said, k), explain)

    async def close(self) -> None:
        await self._upstream.close()


def explain(code: int, said: Any) -> SearchFailure | None:
    if code == 403 and said is None:
        why = "searxng answered HTTP 403: json is not among search.formats in its settings.yml, or its limiter blocks us"
        return SearchFailure(ToolStatus.UPSTREAM_ERROR, why)
    return None


def _read(said: Any, k: int) -> list[TextResult]:
    found = results(listed(said["results"]), k, link="url", title="title", snippet="content")
    silent = said.get("unresponsive_engines")
    if not found and silent:
        # Nobody knows whether there is nothing: that must not look like an empty search. The server itself is well.
        names = ", ".join(": ".join(filter(None, map(words, e))) if is_list(e) else words(e) for e in silent)
        raise SearchFailure(ToolStatus.RATE_LIMITED, f"searxng found nothing, and of its engines some did not answer: {names}")
    return found
