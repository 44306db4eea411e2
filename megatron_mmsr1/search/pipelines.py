"""The paper's two tools as compositions of backends: text = results -> read -> summarise; image = hits with thumbnails."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from megatron_mmsr1.protocol import ImageHit, TextHit
from megatron_mmsr1.search.cache import Cache, cache_key
from megatron_mmsr1.search.interfaces import ImageBackend, Reader, SearchFailure, Summariser, TextBackend, TextResult
from megatron_mmsr1.search.replies import hit_to_wire
from megatron_mmsr1.search.words import normalise
from megatron_mmsr1.trajectory import ToolStatus


@dataclass(slots=True, frozen=True)
class Hits:
    """A pipeline's outcome: the hits as a JSON array, since the store holds them so and the reply embeds them so."""

    json: bytes
    cached: bool

    @property
    def status(self) -> ToolStatus:
        return ToolStatus.EMPTY if self.json == b"[]" else ToolStatus.OK


class TextSearch:
    """Search, read each page, summarise each. Raises SearchFailure if the search fails or no page could be read."""

    def __init__(self, backend: TextBackend, reader: Reader, summariser: Summariser, cache: Cache):
        self.backend, self.reader, self.summariser = backend, reader, summariser
        self._cache = cache

    async def __call__(self, query: str, k: int) -> Hits:
        key = cache_key("text", (self.backend, self.reader, self.summariser), normalise(query), k)
        return Hits(*await self._cache.through(key, "text", lambda: self._search(query, k)))

    async def _search(self, query: str, k: int) -> bytes:
        results = (await self.backend.search(query, k))[:k]
        read = await _together([self._hit(query, r) for r in results])
        hits = [h for h in read if isinstance(h, TextHit)]
        failures = [h for h in read if isinstance(h, SearchFailure)]
        if failures and not hits:
            raise failures[0]
        return orjson.dumps([asdict(h) for h in hits])

    async def _hit(self, query: str, result: TextResult) -> TextHit | SearchFailure:
        """A page that cannot be read costs its hit, not the search."""
        try:
            page = await self.reader.read(result.url)
            return TextHit(result.url, await self.summariser.summarise(query, page.text), page.title or result.title)
        except SearchFailure as e:
            return e


class ImageSearch:
    """Pictures that look alike, with thumbnails and titles. Raises SearchFailure as its backend does."""

    def __init__(self, backend: ImageBackend, cache: Cache):
        self.backend = backend
        self._cache = cache

    async def __call__(self, image: bytes, k: int) -> Hits:
        key = cache_key("image", (self.backend,), image, k)
        return Hits(*await self._cache.through(key, "image", lambda: self._search(image, k)))

    async def _search(self, image: bytes, k: int) -> bytes:
        results = (await self.backend.search(image, k))[:k]
        return orjson.dumps([hit_to_wire(ImageHit(r.title, r.image, r.url)) for r in results])


async def _together[T](calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All at once. Eager tasks: what a local backend answers without waiting costs no turn of the loop."""
    loop = asyncio.get_running_loop()
    return await asyncio.gather(*(asyncio.Task(c, loop=loop, eager_start=True) for c in calls))
