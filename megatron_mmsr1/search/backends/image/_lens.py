"""Google Lens through SerpApi (serpapi.com/google-lens-api), the image search of the paper, or through Serper (serper.dev).

Both work alike, the picture out, the matches' thumbnails in; what differs between the two is a row of VENDORS.

The picture that the vendor gets to see is one of our own making (decoded within caps, encoded anew), so nothing that a user's
file says beside its pixels leaves this machine. Its URL is taken back when the vendor has answered.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from pydantic import Field

from megatron_mmsr1.config.search import ImageSection
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.search.backends.interfaces import ImageResult, Quota, SearchFailure, is_link, listed, version, words
from megatron_mmsr1.search.backends.text import serpapi, serper
from megatron_mmsr1.search.backends.tools import Tools, endpoint
from megatron_mmsr1.search.backends.uploaders import open_uploader
from megatron_mmsr1.search.fetch import Fetcher
from megatron_mmsr1.search.upstream.deadline import first_successes, within
from megatron_mmsr1.search.upstream.secrets import Secret
from megatron_mmsr1.search.upstream.upstream import Ask
from megatron_mmsr1.search.web.pictures import fetch_thumbnail, reencode
from megatron_mmsr1.trajectory import ToolStatus

FETCHES = 64  # thumbnails on their way at once, over all searches
_URL = re.compile(r"https?:/\S*", re.IGNORECASE)


class Options(Section):
    """`search.image.options` of every Lens."""

    query_pixels: int = Field(default=1024, gt=0, description="longest side of the picture that the vendor gets to see")
    spare: int = Field(default=10, ge=0, description="matches beyond k whose thumbnails replace those that fail")


class SerpApiOptions(Options):
    type: Literal["visual_matches", "all"] = Field(default="visual_matches", description="SerpApi's own parameter")


@dataclass(slots=True, frozen=True)
class Match:
    """One match as a vendor gave it. `thumbnail`: a URL or a data: URI, "" where there is none."""

    link: str
    title: str
    thumbnail: str


@dataclass(slots=True, frozen=True)
class Vendor:
    """`upstream`: the file of the vendor's text search, which knows its URL and its errors. `params`: what a request says
    beside the picture; `ask`: the request for the matches of the picture at a URL; `read`: the matches in its answer;
    `account`: the request for what is left, if the vendor has one, which its text search can read.
    """

    upstream: ModuleType
    key: str
    options: type[Options]
    params: Callable[[ImageSection, Any], dict[str, str]]
    ask: Callable[[str, dict[str, str], Secret], Ask]
    read: Callable[[Any], list[Match]]
    account: Callable[[str, Secret], Ask] | None = None


def make(section: ImageSection, tools: Tools) -> Lens:
    vendor = VENDORS[section.backend]
    options = tools.options(section, vendor.options, "search.image")
    return Lens(vendor, section, options, tools, tools.key(section, vendor.key))


class Lens:
    """Only successes are billed; SerpApi bills one that found nothing."""

    local = False

    def __init__(self, vendor: Vendor, section: ImageSection, options: Options, tools: Tools, key: Secret):
        self.name, self._vendor = section.backend, vendor
        self._url, self._key = endpoint(section, "search.image", vendor.upstream.URL), key
        self._upstream = tools.upstream(self.name, section, key)
        self._uploader = open_uploader(section, tools)
        self._fetcher = Fetcher(tools.cfg.fetch)
        self._options, self._timeout_s, self._max_side = options, section.timeout_s, section.thumbnail_pixels
        self._places = asyncio.Semaphore(FETCHES)
        self._params = vendor.params(section, options)
        self.version = version(1, **self._params, query=options.query_pixels, spare=options.spare, side=self._max_side)

    async def search(self, image: bytes, k: int) -> Sequence[ImageResult]:
        """At most `k` matches with their thumbnails. A match whose thumbnail fails gives way to the next one that has one;
        where those run out, the best of the others stand in with their title alone."""
        shown = await asyncio.to_thread(reencode, image, self._options.query_pixels)
        media_type = "image/jpeg" if shown.startswith(b"\xff\xd8") else "image/png"
        async with self._uploader.public(shown, media_type) as url:
            found = await self._ask(url)
        candidates = found[: k + self._options.spare]
        got = await first_successes(candidates, k, self._thumbnail)
        without = [n for n in range(len(candidates)) if n not in got.hits]
        kept = sorted([*got.hits, *without[: k - len(got.hits)]])
        return [ImageResult(candidates[n].link, candidates[n].title, got.hits.get(n), 1 / (n + 1)) for n in kept]

    async def _ask(self, url: str) -> list[Match]:
        try:
            ask = self._vendor.ask(self._url, {**self._params, "url": url}, self._key)
            return await self._upstream.call(ask, self._vendor.read, self._vendor.upstream.explain)
        except SearchFailure as e:
            # A vendor's error may quote the URL, or the start of it, which is a bearer secret.
            failure = SearchFailure(e.status, _URL.sub("(a URL)", e.detail), retry=e.retry, billed=e.billed)
        raise failure

    async def _thumbnail(self, match: Match) -> bytes:
        if not match.thumbnail:
            raise SearchFailure(ToolStatus.EMPTY, "the match has no thumbnail")
        async with within(self._timeout_s, "the thumbnail"), self._places:
            return await fetch_thumbnail(self._fetcher, match.thumbnail, self._max_side)

    async def quota(self) -> Quota | None:
        if self._vendor.account is None:
            return None
        return await self._upstream.call(self._vendor.account(self._url, self._key), self._vendor.upstream.read_account)

    async def close(self) -> None:
        await self._uploader.close()
        await self._fetcher.close()
        await self._upstream.close()


def _matches(rows: Any, thumbnails: Sequence[str]) -> list[Match]:
    """The rows of a vendor's list that have a title; of the thumbnails, under the vendor's names, the first there is."""
    out: list[Match] = []
    for row in listed(rows):
        title, page = words(row.get("title")).strip(), row.get("link")
        pictures = [v for name in thumbnails if isinstance(v := row.get(name), str) and (is_link(v) or v.startswith("data:"))]
        if title:
            out.append(Match(page if isinstance(page, str) and is_link(page) else "", title, next(iter(pictures), "")))
    return out


def _of_serpapi(said: Any) -> list[Match]:
    if "visual_matches" not in said and said["search_metadata"]["status"] != "Success":
        raise ValueError("neither matches nor a finished search")
    return _matches(said.get("visual_matches", []), ("thumbnail", "image"))


VENDORS = {
    "serpapi_lens": Vendor(
        upstream=serpapi,
        key="SERPAPI_API_KEY",
        options=SerpApiOptions,
        params=lambda s, o: {"engine": "google_lens", "type": o.type, "country": s.country, "hl": s.language},
        ask=lambda url, params, key: Ask("GET", f"{url}/search.json", params, secret_params={"api_key": key}),
        read=_of_serpapi,
        account=serpapi.account,
    ),
    "serper_lens": Vendor(
        upstream=serper,
        key="SERPER_API_KEY",
        options=Options,
        params=lambda s, _: {"gl": s.country, "hl": s.language},
        ask=lambda url, params, key: Ask("POST", f"{url}/lens", json=params, secret_headers={"x-api-key": key}),
        read=lambda said: _matches(said["organic"], ("thumbnailUrl", "imageUrl")),
    ),
}
