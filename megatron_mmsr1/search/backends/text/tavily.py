"""Tavily (docs.tavily.com), a search made for language models: its snippets are passages, and it can give whole pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from megatron_mmsr1.config.search import TextSection
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.search.backends.interfaces import Quota, SearchFailure, TextResult, listed, results, version
from megatron_mmsr1.search.backends.tools import Tools, endpoint
from megatron_mmsr1.search.upstream.secrets import Secret
from megatron_mmsr1.search.upstream.upstream import Ask, Upstream, message
from megatron_mmsr1.trajectory import ToolStatus

URL = "https://api.tavily.com"
MAX_RESULTS = 20
OVER_PLAN = 432, 433  # the plan's limit, the pay-as-you-go limit


class Options(Section):
    """Tavily's own parameters of these names. `country` is a name in words there ("united states"); null: none is preferred."""

    search_depth: Literal["basic", "advanced", "fast", "ultra-fast"] = "basic"
    topic: Literal["general", "news", "finance"] = "general"
    include_raw_content: bool = Field(default=False, description="pages come with the results and are not read again")
    country: str | None = None
    include_domains: list[str] = Field(default_factory=list)
    exclude_domains: list[str] = Field(default_factory=list)


def make(section: TextSection, tools: Tools) -> Tavily:
    key = tools.key(section, "TAVILY_API_KEY")
    options = tools.options(section, Options, "search.text")
    return Tavily(options, endpoint(section, "search.text", URL), key, tools.upstream("tavily", section, key))


class Tavily:
    """POST /search. At most MAX_RESULTS results. The section's country and language do not apply."""

    name = "tavily"
    local = False

    def __init__(self, options: Options, url: str, key: Secret, upstream: Upstream):
        self._url, self._key, self._upstream = url, key, upstream
        self._params = {name: value for name, value in options.model_dump().items() if value not in (None, [])}
        self.version = version(1, **self._params)

    async def search(self, query: str, k: int) -> Sequence[TextResult]:
        body = {**self._params, "query": query, "max_results": min(k, MAX_RESULTS)}
        ask = Ask("POST", f"{self._url}/search", json=body, bearer=self._key)
        return await self._upstream.call(ask, lambda said: _read(said, k), explain)

    async def quota(self) -> Quota:
        """Credits; a basic search takes one, an advanced one two."""
        ask = Ask("GET", f"{self._url}/usage", bearer=self._key)
        return await self._upstream.call(ask, _read_usage, explain)

    async def close(self) -> None:
        await self._upstream.close()


def explain(code: int, said: Any) -> SearchFailure | None:
    if code in OVER_PLAN:
        return SearchFailure(ToolStatus.BUDGET, f"tavily: {message(said) or f'HTTP {code}'}")
    return None


def _read_usage(said: Any) -> Quota:
    """The smaller of what the key and the account's plan, with what is paid as one goes, have left; a null limit is none."""
    key, own = said["key"], said.get("account", {})
    limits = [(key.get("limit"), key["usage"])]
    if own.get("plan_limit") is not None:
        extra = (own.get("paygo_limit") or 0) - (own.get("paygo_usage") or 0)
        limits.append((own["plan_limit"] + extra, own["plan_usage"]))
    left = [(int(limit) - int(used), int(limit)) for limit, used in limits if limit is not None]
    return Quota(*min(left)) if left else Quota(None)


def _read(said: Any, k: int) -> list[TextResult]:
    return results(listed(said["results"]), k, link="url", title="title", snippet="content", text="raw_content")
