"""`mmsr1 search export` and `mmsr1 search import`: what became of it, as a table or as one JSON object on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from megatron_mmsr1.search.server import stats
from megatron_mmsr1.search.store.snapshot import export, import_
from megatron_mmsr1.search.store.snapshot_file import Manifest


def export_verb(store: str, out: str, as_json: bool) -> None:
    """Raises what `snapshot.export` does."""
    manifest = export(Path(store), Path(out))
    file_bytes = Path(out).stat().st_size
    found = {"file": out, "file_bytes": file_bytes, "manifest": _plain(manifest)}
    if as_json:
        _json(found)
    else:
        _table(out, [("file", stats.size(file_bytes))], manifest)


def import_verb(file: str, store: str, as_json: bool) -> None:
    """Raises what `snapshot.import_` does."""
    done = import_(Path(file), Path(store))
    if as_json:
        counts = {"added": done.added, "present": done.present, "conflicts": done.conflicts}
        _json({"store": store, "id": done.id, **counts, "manifest": _plain(done.manifest)})
        return
    rows = [("added", f"{done.added:,} entries"), ("there before", f"{done.present:,} entries")]
    if done.conflicts:
        rows.append(("conflicts", f"{done.conflicts:,} keys had another value in the store, which stayed"))
    if done.id != done.manifest.id:
        rows.append(("store is now", f"{done.id}, which is not the file's snapshot: it holds other entries too"))
    _table(store, rows, done.manifest)


def _table(title: str, rows: list[tuple[str, str]], manifest: Manifest) -> None:
    m = _plain(manifest)
    facts = [("snapshot", manifest.id), ("newest entry", manifest.created or "none"), ("values", stats.size(manifest.bytes))]
    facts.append(("written by", f"version {manifest.version}"))
    tables = [stats.grid(title, ["", ""], [*facts, *rows])]
    stats.show([*tables, *stats.entry_tables({"snapshot": m, "backends": m["backends"]})])


def _plain(manifest: Manifest) -> dict[str, Any]:
    return manifest.model_dump(mode="json", by_alias=True)


def _json(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found, indent=1, sort_keys=True) + "\n")
