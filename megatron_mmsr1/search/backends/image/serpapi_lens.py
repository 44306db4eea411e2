"""Google Lens through SerpApi (serpapi.com/google-lens-api), the image search of the paper."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from megatron_mmsr1.config.search import ImageSection
from megatron_mmsr1.search.backends.check import Tools
from megatron_mmsr1.search.backends.image._lens import Lens, LensOptions, Match, read_matches
from megatron_mmsr1.search.backends.text._results import version
from megatron_mmsr1.search.backends.text.serpapi import URL, explain
from megatron_mmsr1.search.upstream.secrets import Secret
from megatron_mmsr1.search.upstream.upstream import Ask


class Options(LensOptions):
    type: Literal["visual_matches", "all"] = Field(default="visual_matches", description="SerpApi's own parameter")


def make(section: ImageSection, tools: Tools) -> SerpApiLens:
    options = tools.options(section, Options, "search.image")
    return SerpApiLens(section, options, tools, tools.key(section, "SERPAPI_API_KEY"))


class SerpApiLens(Lens):
    """GET /search.json?engine=google_lens. Only successes are billed, and a success that found nothing is one."""

    name = "serpapi_lens"

    def __init__(self, section: ImageSection, options: Options, tools: Tools, key: Secret):
        super().__init__(section, options, tools, key, URL)
        self._params = {
            "engine": "google_lens",
            "type": options.type,
            "country": section.country,
            "hl": section.language,
        }
        self.version = version(1, **self._params, query=options.query_pixels, spare=options.spare, side=self._max_side)

    async def matches(self, url: str) -> list[Match]:
        ask = Ask("GET", f"{self._url}/search.json", {**self._params, "url": url}, secret_params={"api_key": self._key})
        return await self._upstream.call(ask, _read, explain)


def _read(said: Any) -> list[Match]:
    if "visual_matches" not in said and said["search_metadata"]["status"] != "Success":
        raise ValueError("neither matches nor a finished search")
    return read_matches(said.get("visual_matches", []), link="link", thumbnails=("thumbnail", "image"))
