"""The paper's two tools as compositions of backends: text = results -> read -> summarise; image = hits with thumbnails.

The three layers of a text search (query -> URLs, URL -> page, page + query -> summary) are kept apart in the store where a
network lies behind them, beside the whole: another query that finds the same page does not read it again.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

import orjson

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.protocol import ImageHit, TextHit, clean
from megatron_mmsr1.search.backends.corpus import normalise
from megatron_mmsr1.search.backends.interfaces import Backend, ImageBackend, Page, SearchFailure, TextResult
from megatron_mmsr1.search.server.compose import SPARE, Backends
from megatron_mmsr1.search.store.cache import Cache, Value, cache_key
from megatron_mmsr1.search.upstream.deadline import Successes, first_successes, remaining, within
from megatron_mmsr1.search.wire import MAX_K, RetrieveRequest, hit_to_wire
from megatron_mmsr1.trajectory import ToolStatus

PIPELINE = 1  # raise it when what is made of the same parts changes
SEARCH_SHARE, READ_SHARE = 0.4, 0.6  # of what the deadline leaves at that point; what is unused passes on
START_CHARS = 1_000  # of a page, where no summariser is configured
TITLE_CHARS, LINK_CHARS, SUMMARY_CHARS = 300, 2_000, 8_000


class TextSearch:
    """Search, read, summarise. Raises SearchFailure if the search fails, or if not one page or snippet could be had."""

    def __init__(self, cfg: SearchConfig, backends: Backends, cache: Cache):
        self.backend, self.reader, self.summariser = backends.text, backends.reader, backends.summariser
        self._cfg, self._cache = cfg, cache
        self._parts: list[Backend] = [b for b in (self.backend, self.reader, self.summariser) if b is not None]
        self.local = all(b.local for b in self._parts)
        self._params = {"pipeline": PIPELINE, "max_chars": cfg.read.max_chars}
        self._spare = 0 if self.local else cfg.text.spare if backends.spare is None else backends.spare
        if not self.local and self._spare != SPARE:
            self._params["spare"] = self._spare

    async def __call__(self, query: str, k: int) -> Value:
        """The hits as a JSON array: the store holds them so, and the reply embeds them so."""
        key = cache_key("text", self._parts, normalise(query), k, self._params)
        return await self._cache.through(key, "text", lambda: self._search(query, k))

    async def results(self, query: str, k: int) -> list[TextResult]:
        """The first layer: what the search engine found, at most `k`."""
        if not self._layered(self.backend):
            return list((await self.backend.search(query, k))[:k])

        async def compute() -> Value:
            return Value(orjson.dumps([asdict(r) for r in (await self.backend.search(query, k))[:k]]))

        key = cache_key("search", [self.backend], normalise(query), k)
        value = await self._cache.through(key, "search", compute)
        return [TextResult(**r) for r in orjson.loads(value.data)]

    async def page(self, result: TextResult) -> Page:
        """The second layer: the text behind a result. SearchFailure(empty) for a page without any."""
        if result.text:
            page = Page(result.url, result.title, clean(result.text)[: self._cfg.read.max_chars])
        else:
            page = await self.read(result.url)
        if not page.text.strip():
            raise SearchFailure(ToolStatus.EMPTY, "the page has no text")
        return page

    async def read(self, url: str) -> Page:
        reader = self.reader
        if reader is None:
            raise SearchFailure(ToolStatus.REFUSED, "this server reads no pages (search.read.backend is none)")
        if not self._layered(reader):
            return await reader.read(url)

        async def compute() -> Value:
            return Value(orjson.dumps(asdict(await reader.read(url))))

        value = await self._cache.through(cache_key("page", [reader], url, 0), "page", compute)
        return Page(**orjson.loads(value.data))

    async def summary(self, query: str, text: str) -> str:
        """The third layer: what a page says on the query."""
        summariser = self.summariser
        if summariser is None:
            return text[:START_CHARS]
        if not self._layered(summariser):
            return await summariser.summarise(query, text)

        async def compute() -> Value:
            return Value((await summariser.summarise(query, text)).encode())

        key = cache_key("summary", [summariser], normalise(query), 0, {"text": cache_key("text", [], text.encode(), 0).hex()})
        return (await self._cache.through(key, "summary", compute)).data.decode()

    def _layered(self, part: Backend) -> bool:
        """Whether its answers are kept by themselves. Those of a local part are made again faster than they are looked up, but
        a recording must hold them: a replay may have no corpus."""
        return not part.local or self._cache.mode != "live"

    # ------------------------------------------------------------------------------------------------------ composition
    async def _search(self, query: str, k: int) -> Value:
        async with within(max(SEARCH_SHARE * remaining(), 0.001), "the text search"):
            results = await self.results(query, min(k + self._spare, MAX_K))
        got = await first_successes(results, k, lambda r: self._hit(query, r))
        hits = [_tidy(h) for _, h in sorted(got.hits.items())]
        wanting = len(hits) < min(k, len(results))
        if wanting and (over := [f for f in got.failures if f.status is ToolStatus.BUDGET]):
            raise over[0]  # who set the cap must hear of it, and not get ever less for an answer
        if not hits and got.failures:
            hits = _snippets(results, k)
            if not hits:
                raise _worst(got)
            return Value(_wire(hits), degraded=True)
        return Value(_wire(hits), degraded=wanting and got.cut_short)

    async def _hit(self, query: str, result: TextResult) -> TextHit:
        if self.reader is None and not result.text:
            return TextHit(result.url, result.snippet, result.title)
        async with within(READ_SHARE * remaining(), "reading the page"):
            page = await self.page(result)
        return TextHit(result.url, await self.summary(query, page.text), page.title or result.title)


class ImageSearch:
    """Pictures that look alike, with thumbnails and titles. Raises SearchFailure as its backend does."""

    def __init__(self, backend: ImageBackend, cache: Cache):
        self.backend = backend
        self._cache = cache

    async def __call__(self, image: bytes, k: int) -> Value:
        return await self._cache.through(cache_key("image", [self.backend], image, k), "image", lambda: self._search(image, k))

    async def _search(self, image: bytes, k: int) -> Value:
        results = (await self.backend.search(image, k))[:k]
        hits = [ImageHit(clean(r.title)[:TITLE_CHARS], r.image, clean(r.url)[:LINK_CHARS]) for r in results]
        return Value(orjson.dumps([hit_to_wire(h) for h in hits]))


def _tidy(hit: TextHit) -> TextHit:
    """Untrusted text as it may be shown: control tokens, our tags and invisible characters defused, lengths bounded."""
    return TextHit(clean(hit.link)[:LINK_CHARS], clean(hit.summary)[:SUMMARY_CHARS], clean(hit.title)[:TITLE_CHARS])


def _snippets(results: list[TextResult], k: int) -> list[TextHit]:
    """What the search engine itself said of its results: better than nothing when no page could be read."""
    return [_tidy(TextHit(r.url, r.snippet, r.title)) for r in results if r.snippet.strip()][:k]


def _worst(got: Successes[TextHit]) -> SearchFailure:
    """Of several pages' failures the one that says most: an infrastructure failure before a page's own fault."""
    return next((f for f in got.failures if f.status.infrastructure), got.failures[0])


def _wire(hits: list[TextHit]) -> bytes:
    return orjson.dumps([asdict(h) for h in hits])


# Search-R1's retrieval contract (`POST /retrieve`), which the community's agents speak.

DEFAULT_TOPK = 3


async def retrieve(search: TextSearch, request: RetrieveRequest) -> dict[str, Any]:
    """{"result": one list a query}: documents {"id", "contents"}, each beside its score if `return_scores`.

    `contents` is the title in quotes, a newline, the text. The contract has no place for the failure of one query, so any
    SearchFailure is the failure of the request.
    """

    async def document(found: TextResult) -> dict[str, Any]:
        page = await search.page(found)
        row = {"id": found.url, "contents": f'"{page.title or found.title}"\n{page.text}'}
        return {"document": row, "score": found.score} if request.return_scores else row

    async def one(query: str) -> list[dict[str, Any]]:
        found = await search.results(query, request.topk or DEFAULT_TOPK)
        return [await document(r) for r in found] if search.local else await asyncio.gather(*map(document, found))

    return {"result": [await one(q) for q in request.queries]}
