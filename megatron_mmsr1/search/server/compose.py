"""From the `search` section of a config to the backends that it names: a file of that name, in the directory of its kind.

A backend's module defines `make(section, tools)`. A new backend is one new file, here or anywhere; nothing here changes.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import orjson

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.config.search import BackendSection
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.plugins.registry import Registry
from megatron_mmsr1.search.backends.corpus import normalise
from megatron_mmsr1.search.backends.interfaces import (
    Backend,
    ImageBackend,
    Page,
    Reader,
    SearchFailure,
    Summariser,
    TextBackend,
)
from megatron_mmsr1.search.backends.tools import Tools
from megatron_mmsr1.search.store.cache import Cache
from megatron_mmsr1.search.store.store import Store
from megatron_mmsr1.trajectory import ToolStatus

NONE = "none"
SPARE = 3  # what a key without `spare` stands for: stores that were recorded before it was in the key are still found


@dataclass(slots=True, frozen=True)
class Backends:
    """`image` is None where there is nothing to search pictures with; `reader` where results' own words must do;
    `summariser` where a page's start stands for its summary."""

    text: TextBackend
    image: ImageBackend | None
    reader: Reader | None
    summariser: Summariser | None
    spare: int | None = None  # `search.text.spare` of a strict replay, as the store notes it; None: the config's

    def all(self) -> list[Backend]:
        return [b for b in (self.text, self.image, self.reader, self.summariser) if b is not None]


def compose(cfg: SearchConfig, tools: Tools) -> Backends:
    """Load indexes, find keys, make the backends. Raises UsageError that names the setting, the file and the line."""
    text: TextBackend = make("text", cfg.text, tools)
    image: ImageBackend | None = make("image", cfg.image, tools, auto=_auto_image(tools))
    faults = Faults(cfg.missing_rate, cfg.error_rate, cfg.latency_s)
    if faults:
        text = Faulty(text, faults) if text.local else text
        image = Faulty(image, faults) if image and image.local else image
    reader: Reader | None = make("read", cfg.read, tools, auto=NONE if cfg.corpus is None else "corpus")
    return Backends(text, image, reader, make("summarise", cfg.summarise, tools))


def make(kind: str, section: BackendSection, tools: Tools, auto: str = NONE) -> Any:
    """The backend that a section names; None for "none". UsageError as `Registry.get` raises it."""
    name = auto if section.backend == "auto" else section.backend
    if name == NONE and kind != "text":
        return None
    return registry(kind).get(name)(section, tools)


def registry(kind: str) -> Registry[Any]:
    """The backends of a kind (text, image, read, summarise): what ships, what is installed, a person's own."""
    return importlib.import_module(f"megatron_mmsr1.search.backends.{kind}").REGISTRY


def _auto_image(tools: Tools) -> str:
    return "descriptor" if tools.directory is not None and (tools.directory / "images.jsonl").exists() else NONE


# How a server opens its store and its backends for its mode, and what it says of them: the snapshot's id goes into
# checkpoints, dumps and reports.

META = "backends"


def open_all(cfg: SearchConfig, path: Path | None, tools: Tools) -> tuple[Backends, Store | None]:
    """Raises UsageError (config, corpus, keys; a mode that needs a store) or RunError (a file that is no store of ours)."""
    if path is None:
        if cfg.mode != "live":
            raise UsageError(f"search.mode={cfg.mode} needs a store: name one with search.cache")
        return compose(cfg, tools), None
    if cfg.mode in ("live", "record"):
        backends = compose(cfg, tools)
        store = Store(path)
        note = _backends(backends)
        note["text"]["spare"] = cfg.text.spare  # a strict replay needs the recording's, whatever its own config says
        store.set_meta(META, orjson.dumps(note).decode())
        return backends, store
    if not path.is_file():
        raise UsageError(f"search.mode={cfg.mode}: there is no store at {path}: record one, or mmsr1 search import a snapshot")
    store = Store.open_readonly(path)
    if cfg.mode == "replay":
        return compose(cfg, tools), store
    return replayed(cfg, orjson.loads(store.get_meta(META) or "{}"), str(path)), store


def describe(cache: Cache, backends: Backends) -> dict[str, Any]:
    """{"mode", "id", "entries", "backends"}: `id` is None without a store; in the replays it cannot change."""
    store = cache.store
    name, entries = (None, dict[str, int]()) if store is None else (store.snapshot_id(), store.counts())
    return {"mode": cache.mode, "id": name, "entries": entries, "backends": _backends(backends)}


def _backends(backends: Backends) -> dict[str, dict[str, Any]]:
    parts = {"text": backends.text, "image": backends.image, "read": backends.reader, "summarise": backends.summariser}
    return {kind: {"name": b.name, "version": b.version, "local": b.local} for kind, b in parts.items() if b is not None}


# Failures on purpose, for the local backends: the same query always meets the same fate, so that a run repeats.


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


class Faulty:
    """A text or image backend with faults in front."""

    def __init__(self, inner: TextBackend | ImageBackend, faults: Faults):
        self._inner: Any = inner
        self._faults = faults
        self.name, self.version, self.local = inner.name, faults.version(inner.version), inner.local

    async def search(self, query: Any, k: int, /) -> Sequence[Any]:
        """`query`: a text, or an encoded picture."""
        if isinstance(query, str):
            asked = b"text:" + normalise(query).encode("utf-8", "replace")
        else:
            asked = b"image:" + hashlib.sha256(query).digest()
        return [] if await self._faults.meet(asked) else await self._inner.search(query, k)

    async def close(self) -> None:
        await self._inner.close()


# The backends of a snapshot, as names only: replay-strict needs no keys, no corpus and no weights, and cannot reach
# anything.
class Replayed:
    """Stands where a backend stood when the snapshot was recorded; whatever would reach it is a failure."""

    def __init__(self, name: str, version: str, local: bool):
        self.name, self.version, self.local = name, version, local

    async def search(self, query: Any, k: int, /) -> Sequence[Any]:
        self._refuse()

    async def read(self, url: str) -> Page:
        self._refuse()

    async def summarise(self, query: str, page_text: str) -> str:
        self._refuse()

    async def close(self) -> None:
        pass

    def _refuse(self) -> NoReturn:
        raise SearchFailure(ToolStatus.UPSTREAM_ERROR, f"search.mode is replay-strict: {self.name} is not asked")


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
    made = {kind: Replayed(r["name"], r["version"], r["local"]) for kind, r in recorded.items()}
    spare = recorded["text"].get("spare", SPARE)
    return Backends(made["text"], made.get("image"), made.get("read"), made.get("summarise"), spare)
