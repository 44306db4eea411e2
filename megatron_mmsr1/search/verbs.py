"""What `mmsr1 search stats`, `export` and `import` show: a table, or one JSON object on stdout."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.procs import http
from megatron_mmsr1.search.store import entries as store_entries
from megatron_mmsr1.search.store import file as store_file
from megatron_mmsr1.untyped import is_dict

if TYPE_CHECKING:
    from rich.console import RenderableType


from megatron_mmsr1.search.store.snapshot import export, import_
from megatron_mmsr1.search.store.snapshot_file import Manifest

TIMEOUT_S = 10.0


def stats(source: str, as_json: bool) -> None:
    """`source`: a store's file, or a server's URL (http://...). A table, or one JSON object on stdout.

    Raises UsageError if there is no such store; RunError if the server cannot be reached or answers something else.
    """
    url = source.startswith(("http://", "https://"))
    found = from_server(source.rstrip("/")) if url else from_store(Path(source))
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1, sort_keys=True) + "\n")
        return
    show(server_tables(found) if url else store_tables(found))


def from_store(path: Path) -> dict[str, Any]:
    """`bytes`: of all values, each once; `file_bytes`: what they take on the disk. Times are UTC."""
    with contextlib.closing(store_file.open_readonly(path)) as db, store_file.failing(path):
        with store_file.transaction(db, "BEGIN"):
            tally = store_entries.tally(db)
            contents, size = db.execute("SELECT count(*), coalesce(sum(size), 0) FROM contents").fetchone()
            first, last = db.execute("SELECT min(created), max(created) FROM entries").fetchone()
            backends = store_entries.get_meta(db, "backends")
        files = (path, path.with_name(path.name + "-wal"))
        return {
            "store": str(path),
            "snapshot": {"id": store_entries.snapshot_id(tally), "entries": {kind: n for kind, (n, _) in tally.items()}},
            "contents": contents,
            "bytes": size,
            "file_bytes": sum(f.stat().st_size for f in files if f.exists()),
            "first": _utc(first),
            "last": _utc(last),
            "backends": json.loads(backends or "{}"),
        }


def from_server(url: str) -> dict[str, Any]:
    """What GET /v1/stats says."""
    try:
        answer = http.get(f"{url}/v1/stats", timeout_s=TIMEOUT_S)
    except http.Unanswered as e:
        raise RunError(f"no search server answers at {url} ({e}): start one with mmsr1 search serve") from e
    try:
        found = answer.json()
    except http.Unanswered:
        found = None
    if answer.status != 200 or not is_dict(found):
        raise RunError(f"{url}/v1/stats answered HTTP {answer.status} without statistics: is it a search server of ours?")
    return found


# ------------------------------------------------------------------------------------------------------------------- tables
def store_tables(d: dict[str, Any]) -> list[RenderableType]:
    facts = [
        ("snapshot", d["snapshot"]["id"]),
        ("contents", f"{d['contents']:,} ({size(d['bytes'])}; {size(d['file_bytes'])} on disk)"),
        ("recorded", f"{d['first']} to {d['last']}" if d["first"] else "nothing yet"),
    ]
    return [grid(d["store"], ["", ""], facts), *entry_tables(d)]


def server_tables(d: dict[str, Any]) -> list[RenderableType]:
    """A table for each part that the answer has and that is not empty."""
    snapshot = d.get("snapshot", {}).get("id") or "no store"
    facts = [("mode", d.get("mode", "")), ("snapshot", snapshot), ("up", f"{d.get('seconds', 0):,.0f} s")]
    facts += [(name.replace("_", " "), str(d[name])) for name in ("store_errors", "replay_misses") if d.get(name)]
    out = [grid("Search server", ["", ""], facts), *entry_tables(d)]
    calls = {kind: by for kind, by in d.get("calls", {}).items() if by}
    if calls:
        hits, degraded = d.get("cache_hits", {}), d.get("degraded", {})
        rows = [(kind, _counts(by), hits.get(kind, 0), degraded.get(kind, 0)) for kind, by in calls.items()]
        out.append(grid("Calls", ["kind", "by status", "cached", "degraded"], rows))
    if d.get("upstreams"):
        rows = [
            (name, _counts(u.get("statuses", {})), u.get("retries", 0), _breaker(u), _usd(u.get("usd", 0)))
            for name, u in d["upstreams"].items()
        ]
        out.append(grid("Upstreams", ["name", "by status", "retries", "breaker", "cost"], rows))
    if d.get("spend"):
        rows = [(s["run"], s["day"], s["backend"], s["calls"], _usd(s["usd"])) for s in d["spend"]]
        total = ("all", "", "", sum(s["calls"] for s in d["spend"]), _usd(sum(s["usd"] for s in d["spend"])))
        out.append(grid("Spend", ["run", "day", "backend", "calls", "cost"], [*rows, total]))
    return out


def entry_tables(d: dict[str, Any]) -> list[RenderableType]:
    out: list[RenderableType] = []
    entries = d.get("snapshot", {}).get("entries")
    if entries:
        out.append(grid("Entries", ["kind", "entries"], [*entries.items(), ("all", sum(entries.values()))]))
    if d.get("backends"):
        rows = [(kind, b.get("name", ""), b.get("version", "")) for kind, b in d["backends"].items()]
        out.append(grid("Backends", ["kind", "name", "version"], rows))
    return out


def grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | int]]) -> RenderableType:
    """Numbers stand right. Nothing in a cell is markup."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    out = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, show_header=any(columns))
    for i, name in enumerate(columns):
        numbers = bool(rows) and all(isinstance(r[i], int) or str(r[i]).startswith("$") for r in rows)
        out.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        out.add_row(*(Text(f"{c:,}" if isinstance(c, int) else c) for c in row))
    return out


def show(tables: Sequence[RenderableType]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for t in tables:
        console.print(t)


def size(n: int) -> str:
    return f"{n / 2**20:,.1f} MiB" if n >= 2**20 else f"{n / 1024:,.1f} KiB"


def _counts(by: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in by.items() if n)


def _breaker(u: dict[str, Any]) -> str:
    opened = u.get("breaker_turns", {}).get("open", 0)
    return u.get("breaker", "") + (f" (opened {opened:,} times)" if opened else "")


def _usd(x: float) -> str:
    return f"${x:,.4f}".rstrip("0").rstrip(".")


def _utc(seconds: float | None) -> str | None:
    return None if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


# `mmsr1 search export` and `mmsr1 search import`: what became of it, as a table or as one JSON object on stdout.


def export_verb(store: str, out: str, as_json: bool) -> None:
    """Raises what `snapshot.export` does."""
    manifest = export(Path(store), Path(out))
    file_bytes = Path(out).stat().st_size
    found = {"file": out, "file_bytes": file_bytes, "manifest": _plain(manifest)}
    if as_json:
        _json(found)
    else:
        _table(out, [("file", size(file_bytes))], manifest)


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
    facts = [("snapshot", manifest.id), ("newest entry", manifest.created or "none"), ("values", size(manifest.bytes))]
    facts.append(("written by", f"version {manifest.version}"))
    tables = [grid(title, ["", ""], [*facts, *rows])]
    show([*tables, *entry_tables({"snapshot": m, "backends": m["backends"]})])


def _plain(manifest: Manifest) -> dict[str, Any]:
    return manifest.model_dump(mode="json", by_alias=True)


def _json(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found, indent=1, sort_keys=True) + "\n")
