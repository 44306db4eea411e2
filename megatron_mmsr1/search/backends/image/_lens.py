"""What the live Lens backends share: the picture out, the matches' thumbnails in.

The picture that the vendor gets to see is one of our own making (decoded within caps, encoded anew), so nothing that a user's
file says beside its pixels leaves this machine. Its URL is taken back when the vendor has answered.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from megatron_mmsr1.config.search import ImageSection
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.search.backends.check import Tools
from megatron_mmsr1.search.backends.first_successes import first_successes
from megatron_mmsr1.search.backends.interfaces import ImageResult, SearchFailure
from megatron_mmsr1.search.backends.text._results import is_link, listed, words
from megatron_mmsr1.search.backends.thumbnails import fetch_thumbnail, reencode
from megatron_mmsr1.search.backends.uploaders import open_uploader
from megatron_mmsr1.search.upstream.deadline import within
from megatron_mmsr1.search.upstream.endpoint import endpoint
from megatron_mmsr1.search.upstream.secrets import Secret
from megatron_mmsr1.search.web.fetch import Fetcher
from megatron_mmsr1.trajectory import ToolStatus

FETCHES = 64  # thumbnails on their way at once, over all searches
_URL = re.compile(r"https?:/\S*", re.IGNORECASE)


class LensOptions(Section):
    """`search.image.options` of every Lens."""

    query_pixels: int = Field(default=1024, gt=0, description="longest side of the picture that the vendor gets to see")
    spare: int = Field(default=10, ge=0, description="matches beyond k whose thumbnails replace those that fail")


@dataclass(slots=True, frozen=True)
class Match:
    """One match as a vendor gave it. `thumbnail`: a URL or a data: URI, "" where there is none."""

    link: str
    title: str
    thumbnail: str


class Lens(ABC):
    """A vendor's file says how to ask for matches; the rest is here."""

    name: str
    version: str
    local = False

    def __init__(self, section: ImageSection, options: LensOptions, tools: Tools, key: Secret, url: str):
        """`url`: the vendor's base URL, where the section names no other."""
        self._url, self._key = endpoint(section, "search.image", url), key
        self._upstream = tools.upstream(self.name, section, key)
        self._uploader = open_uploader(section, tools)
        self._fetcher = Fetcher(tools.cfg.fetch)
        self._options, self._timeout_s, self._max_side = options, section.timeout_s, section.thumbnail_pixels
        self._places = asyncio.Semaphore(FETCHES)

    @abstractmethod
    async def matches(self, url: str) -> list[Match]:
        """All matches for the picture at `url`, best first. Raises SearchFailure."""

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
            return await self.matches(url)
        except SearchFailure as e:
            # A vendor's error may quote the URL, or the start of it, which is a bearer secret.
            failure = SearchFailure(e.status, _URL.sub("(a URL)", e.detail), retry=e.retry, billed=e.billed)
        raise failure

    async def _thumbnail(self, match: Match) -> bytes:
        if not match.thumbnail:
            raise SearchFailure(ToolStatus.EMPTY, "the match has no thumbnail")
        async with within(self._timeout_s, "the thumbnail"), self._places:
            return await fetch_thumbnail(self._fetcher, match.thumbnail, self._max_side)

    async def close(self) -> None:
        await self._uploader.close()
        await self._fetcher.close()
        await self._upstream.close()


def read_matches(rows: Any, *, link: str, thumbnails: Sequence[str]) -> list[Match]:
    """The rows of a vendor's list that have a title, under its names for the fields; of the thumbnails the first there is."""
    out = []
    for row in listed(rows):
        title, page = words(row.get("title")).strip(), row.get(link)
        pictures = [v for name in thumbnails if isinstance(v := row.get(name), str) and (is_link(v) or v.startswith("data:"))]
        if title:
            out.append(Match(page if isinstance(page, str) and is_link(page) else "", title, next(iter(pictures), "")))
    return out
