"""The backends of a snapshot, as names only: replay-strict needs no keys, no corpus and no weights, and cannot reach
anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.compose import Backends
from megatron_mmsr1.search.interfaces import ImageResult, Page, SearchFailure, TextResult
from megatron_mmsr1.trajectory import ToolStatus


class Replayed:
    """Stands where a backend stood when the snapshot was recorded; whatever would reach it is a failure."""

    def __init__(self, name: str, version: str, local: bool):
        self.name, self.version, self.local = name, version, local

    async def read(self, url: str) -> Page:
        self._refuse()

    async def summarise(self, query: str, page_text: str) -> str:
        self._refuse()

    async def close(self) -> None:
        pass

    def _refuse(self) -> NoReturn:
        raise SearchFailure(ToolStatus.UPSTREAM_ERROR, f"search.mode is replay-strict: {self.name} is not asked")


class ReplayedText(Replayed):
    async def search(self, query: str, k: int) -> Sequence[TextResult]:
        self._refuse()


class ReplayedImage(Replayed):
    async def search(self, image: bytes, k: int) -> Sequence[ImageResult]:
        self._refuse()


def replayed(cfg: SearchConfig, recorded: dict[str, dict[str, Any]], where: str) -> Backends:
    """What `recorded` (the store's own note of its backends) names. UsageError if the config names another backend."""
    for kind in ("text", "image", "read", "summarise"):
        asked = getattr(cfg, kind).backend
        held = recorded.get(kind, {}).get("name", "none")
        default = type(cfg).model_fields[kind].default.backend
        if asked not in (held, "auto", default):
            raise UsageError(f"search.{kind}.backend={asked}, but {where} was recorded with {held}: replay it with that")
    if "text" not in recorded:
        raise UsageError(f"{where} does not say which backends it was recorded with: it cannot be replayed strictly")
    made = {kind: _make(kind, r) for kind, r in recorded.items()}
    return Backends(made["text"], made.get("image"), made.get("read"), made.get("summarise"))


def _make(kind: str, r: dict[str, Any]) -> Any:
    cls = {"text": ReplayedText, "image": ReplayedImage}.get(kind, Replayed)
    return cls(r["name"], r["version"], r["local"])
