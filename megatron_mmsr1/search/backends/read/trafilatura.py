"""Reading pages with this process's own means: a guarded fetch, then trafilatura's article and our rules on what is hidden."""

from __future__ import annotations

import importlib.metadata
import os

from pydantic import BaseModel, ConfigDict, Field

from megatron_mmsr1.config.search import ReadSection
from megatron_mmsr1.search.backends.interfaces import Page
from megatron_mmsr1.search.backends.tools import Tools
from megatron_mmsr1.search.fetch import Fetcher
from megatron_mmsr1.search.upstream.upstream import Upstream
from megatron_mmsr1.search.web.pages import Extractors, plain_text

RULES = 1  # of pages.py: another number where the same page comes out in another way


class Options(BaseModel):
    """search.read.options of this backend."""

    model_config = ConfigDict(extra="forbid")

    workers: int = Field(
        default_factory=lambda: min(16, len(os.sched_getaffinity(0))), gt=0, description="processes that extract, at most"
    )


def make(section: ReadSection, tools: Tools) -> TrafilaturaReader:
    options = tools.options(section, Options, "search.read")
    upstream = tools.upstream("trafilatura", section)
    return TrafilaturaReader(Fetcher(tools.cfg.fetch), upstream, Extractors(options.workers), section.max_chars)


class TrafilaturaReader:
    """Reads the pages of the public web, and those of `search.fetch.allow`.

    `read` raises SearchFailure: refused for what the guard refuses, empty where the host has no such page.
    """

    name = "trafilatura"
    local = False

    def __init__(self, fetcher: Fetcher, upstream: Upstream, extractors: Extractors, max_chars: int):
        self._fetcher, self._upstream, self._extractors, self._max_chars = fetcher, upstream, extractors, max_chars
        self.version = f"{RULES}:{importlib.metadata.version('trafilatura')}:{max_chars}"

    async def read(self, url: str) -> Page:
        # The hosts are many: that one fails says nothing of the next, so there is no breaker.
        return await self._upstream.run(lambda: self._once(url), breaker=False)

    async def close(self) -> None:
        await self._fetcher.close()
        await self._extractors.close()
        await self._upstream.close()

    async def _once(self, url: str) -> Page:
        fetched = await self._fetcher.get(url)
        if fetched.content_type == "text/plain":
            title, text = "", plain_text(fetched.text[: 4 * self._max_chars])
        else:
            title, text = await self._extractors.page(fetched.text)
        return Page(url, title, text[: self._max_chars])
