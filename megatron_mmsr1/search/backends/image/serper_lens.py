"""Google Lens through Serper (serper.dev)."""

from __future__ import annotations

from typing import Any

from megatron_mmsr1.config.search import ImageSection
from megatron_mmsr1.search.backends.check import Tools
from megatron_mmsr1.search.backends.image._lens import Lens, LensOptions, Match, read_matches
from megatron_mmsr1.search.backends.text._results import version
from megatron_mmsr1.search.backends.text.serper import URL, explain
from megatron_mmsr1.search.upstream.secrets import Secret
from megatron_mmsr1.search.upstream.upstream import Ask


def make(section: ImageSection, tools: Tools) -> SerperLens:
    options = tools.options(section, LensOptions, "search.image")
    return SerperLens(section, options, tools, tools.key(section, "SERPER_API_KEY"))


class SerperLens(Lens):
    """POST /lens. Only successes are billed."""

    name = "serper_lens"

    def __init__(self, section: ImageSection, options: LensOptions, tools: Tools, key: Secret):
        super().__init__(section, options, tools, key, URL)
        self._params = {"gl": section.country, "hl": section.language}
        self.version = version(1, **self._params, query=options.query_pixels, spare=options.spare, side=self._max_side)

    async def matches(self, url: str) -> list[Match]:
        ask = Ask("POST", f"{self._url}/lens", json={**self._params, "url": url}, secret_headers={"x-api-key": self._key})
        return await self._upstream.call(ask, _read, explain)


def _read(said: Any) -> list[Match]:
    return read_matches(said["organic"], link="link", thumbnails=("thumbnailUrl", "imageUrl"))
