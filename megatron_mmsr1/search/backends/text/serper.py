"""Google through Serper (serper.dev)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_mmsr1.config.search import TextSection
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.search.backends.interfaces import SearchFailure, TextResult, listed, results, version
from megatron_mmsr1.search.backends.tools import Tools, endpoint
from megatron_mmsr1.search.upstream.secrets import Secret
from megatron_mmsr1.search.upstream.upstream import Ask, Upstream, message
from megatron_mmsr1.trajectory import ToolStatus

URL = "https://google.serper.dev"
NUM = 10, 100


class Options(Section):
    """Serper's own parameters of these names; null: not sent."""

    location: str | None = None
    autocorrect: bool | None = None


def make(section: TextSection, tools: Tools) -> Serper:
    key = tools.key(section, "SERPER_API_KEY")
    options = tools.options(section, Options, "search.text")
    return Serper(section, options, endpoint(section, "search.text", URL), key, tools.upstream("serper", section, key))


class Serper:
    """POST /search. Only successes are billed."""

    name = "serper"
    local = False

    def __init__(self, section: TextSection, options: Options, url: str, key: Secret, upstream: Upstream):
        self._url, self._key, self._upstream = url, key, upstream
        self._params = {"gl": section.country, "hl": section.language, **options.model_dump(exclude_none=True)}
        self.version = version(1, **self._params)

    async def search(self, query: str, k: int) -> Sequence[TextResult]:
        body = {**self._params, "q": query, "num": min(max(k, NUM[0]), NUM[1])}
        ask = Ask("POST", f"{self._url}/search", json=body, secret_headers={"x-api-key": self._key})
        return await self._upstream.call(ask, lambda said: _read(said, k), explain)

    async def close(self) -> None:
        await self._upstream.close()


def explain(code: int, said: Any) -> SearchFailure | None:
    """An account without credits is a 400 there."""
    words = message(said)
    if code == 400 and "credits" in words.lower():
        return SearchFailure(ToolStatus.BUDGET, f"serper: {words}")
    return None


def _read(said: Any, k: int) -> list[TextResult]:
    return results(listed(said["organic"]), k, link="link", title="title", snippet="snippet")
