"""Failures on purpose, for the local backends: the same query always meets the same fate, so that a run repeats."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.corpus import normalise
from megatron_mmsr1.search.backends.interfaces import ImageBackend, ImageResult, SearchFailure, TextBackend, TextResult
from megatron_mmsr1.trajectory import ToolStatus


@dataclass(slots=True, frozen=True)
class Faults:
    """Shares of queries that find nothing and that fail, and seconds added to each search."""

    missing_rate: float = 0.0
    error_rate: float = 0.0
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if self.missing_rate + self.error_rate > 1:
            raise UsageError(
                f"search.missing_rate={self.missing_rate} and search.error_rate={self.error_rate} sum to more than 1"
            )

    def __bool__(self) -> bool:
        return bool(self.missing_rate or self.error_rate or self.latency_s)

    async def meet(self, query: bytes) -> bool:
        """Wait; then raise SearchFailure(upstream_error), or say whether this query goes missing."""
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        draw = int.from_bytes(hashlib.sha256(b"fault:" + query).digest()[:8]) / 2**64
        if draw < self.error_rate:
            raise SearchFailure(ToolStatus.UPSTREAM_ERROR, "failed on purpose (search.error_rate)")
        return draw < self.error_rate + self.missing_rate

    def version(self, inner: str) -> str:
        return f"{inner}|faults:{self.missing_rate}:{self.error_rate}"


class FaultyText:
    """A text backend with faults in front."""

    def __init__(self, inner: TextBackend, faults: Faults):
        self._inner, self._faults = inner, faults
        self.name, self.version = inner.name, faults.version(inner.version)
        self.local = inner.local

    async def search(self, query: str, k: int) -> Sequence[TextResult]:
        if await self._faults.meet(b"text:" + normalise(query).encode("utf-8", "replace")):
            return []
        return await self._inner.search(query, k)

    async def close(self) -> None:
        await self._inner.close()


class FaultyImage:
    """An image backend with faults in front."""

    def __init__(self, inner: ImageBackend, faults: Faults):
        self._inner, self._faults = inner, faults
        self.name, self.version = inner.name, faults.version(inner.version)
        self.local = inner.local

    async def search(self, image: bytes, k: int) -> Sequence[ImageResult]:
        if await self._faults.meet(b"image:" + hashlib.sha256(image).digest()):
            return []
        return await self._inner.search(image, k)

    async def close(self) -> None:
        await self._inner.close()
