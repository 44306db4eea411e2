"""How a server opens its store and its backends for its mode, and what it says of them: the snapshot's id goes into
checkpoints, dumps and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.check import Tools
from megatron_mmsr1.search.server.compose import Backends, compose
from megatron_mmsr1.search.server.outcomes import replayed
from megatron_mmsr1.search.store.cache import Cache
from megatron_mmsr1.search.store.store import Store

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
        store.set_meta(META, orjson.dumps(_backends(backends)).decode())
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
    held = {"id": None, "entries": {}} if store is None else {"id": store.snapshot_id(), "entries": store.counts()}
    return {"mode": cache.mode, **held, "backends": _backends(backends)}


def _backends(backends: Backends) -> dict[str, dict[str, Any]]:
    parts = {"text": backends.text, "image": backends.image, "read": backends.reader, "summarise": backends.summariser}
    return {kind: {"name": b.name, "version": b.version, "local": b.local} for kind, b in parts.items() if b is not None}
