"""Google through SerpApi (serpapi.com/search-api). The key is a query parameter there, so its URLs are never shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_mmsr1.config.search import TextSection
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.search.backends.interfaces import Quota, SearchFailure, TextResult, listed, results, version
from megatron_mmsr1.search.backends.tools import Tools, endpoint
from megatron_mmsr1.search.upstream.secrets import Secret
from megatron_mmsr1.search.upstream.upstream import Ask, Upstream, message
from megatron_mmsr1.trajectory import ToolStatus

URL = "https://serpapi.com"
NUM = 10, 100  # results Google gives on a page, least and most


class Options(Section):
    """SerpApi's own parameters of these names; null: not sent."""

    location: str | None = None
    google_domain: str | None = None
    safe: str | None = None


def make(section: TextSection, tools: Tools) -> SerpApi:
    key = tools.key(section, "SERPAPI_API_KEY")
    options = tools.options(section, Options, "search.text")
    return SerpApi(section, options, endpoint(section, "search.text", URL), key, tools.upstream("serpapi", section, key))


class SerpApi:
    """GET /search.json?engine=google. Only successes are billed, and a success that found nothing is one."""

    name = "serpapi"
    local = False

    def __init__(self, section: TextSection, options: Options, url: str, key: Secret, upstream: Upstream):
        self._url, self._key, self._upstream = url, key, upstream
        self._params = {"engine": "google", "gl": section.country, "hl": section.language}
        self._params |= options.model_dump(exclude_none=True)
        self.version = version(1, **self._params)

    async def search(self, query: str, k: int) -> Sequence[TextResult]:
        params = {**self._params, "q": query, "num": min(max(k, NUM[0]), NUM[1])}
        ask = Ask("GET", f"{self._url}/search.json", params, secret_params={"api_key": self._key})
        return await self._upstream.call(ask, lambda said: _read(said, k), explain)

    async def quota(self) -> Quota:
        return await self._upstream.call(account(self._url, self._key), read_account)

    async def close(self) -> None:
        await self._upstream.close()


def account(url: str, key: Secret) -> Ask:
    """serpapi.com/account-api: not billed. Its answer holds the key and an address: nothing but numbers may be read of it."""
    return Ask("GET", f"{url}/account.json", secret_params={"api_key": key})


def read_account(said: Any) -> Quota:
    return Quota(int(said["total_searches_left"]), int(said["searches_per_month"]) or None)


def explain(code: int, said: Any) -> SearchFailure | None:
    """429 means either of two things, of which only one passes; and a search that failed may come as a 200 with `error`."""
    words = message(said["error"]) if "error" in said else ""
    if code == 429 and "run out of searches" in words:
        return SearchFailure(ToolStatus.BUDGET, f"serpapi: {words}")
    if code == 200 and said.get("search_metadata", {}).get("status") == "Error":
        return SearchFailure(ToolStatus.UPSTREAM_ERROR, f"serpapi's search failed: {words}", retry=0.0)
    if code == 200 and words and not _nothing_found(said, words):
        return SearchFailure(ToolStatus.UPSTREAM_ERROR, f"serpapi: {words}")
    return None


def _nothing_found(said: Any, words: str) -> bool:
    return "returned any results" in words or said.get("search_metadata", {}).get("status") == "Success"


def _read(said: Any, k: int) -> list[TextResult]:
    if "organic_results" not in said and "error" not in said and said["search_metadata"]["status"] != "Success":
        raise ValueError("neither results nor a finished search")
    return results(listed(said.get("organic_results", [])), k, link="link", title="title", snippet="snippet")
