"""`mmsr1 search <verb>`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_mmsr1.cli.parts import Verbs, existing, group, port, verb, with_config
from megatron_mmsr1.errors import UsageError

if TYPE_CHECKING:
    from megatron_mmsr1.config import SearchConfig

PORT = 8100
URL = f"http://127.0.0.1:{PORT}"


def add(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """The group and its verbs."""
    search = group(verbs, "search", "serve search, ask it, keep what it answered, and know what it costs")

    p = verb(search, "serve", _serve, "serve text and image search", "mmsr1 search serve corpus=build/atlas")
    p.add_argument(
        "override", metavar="key=value", nargs="*", default=[], help="of the `search:` section: corpus=DIR text.backend=serper"
    )
    p.add_argument("--config", metavar="RUN.yaml", help="take the `search:` section of this run")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    p.add_argument("--port", type=port, default=PORT, help="port to listen on, 0 for any (default: %(default)s)")
    _json(p, "say on one line of JSON where it listens")

    p = verb(search, "query", _query, "ask a search server", 'mmsr1 search query "Where does the Velo river end?"')
    p.add_argument("text", metavar="TEXT", nargs="?", help="what to look for")
    p.add_argument("--image", metavar="FILE", help="search by this image instead")
    p.add_argument("--url", default=URL, help="the server (default: %(default)s)")
    p.add_argument("-k", type=int, default=5, help="results to ask for (default: %(default)s)")
    _json(p)

    example = "mmsr1 search estimate configs/qwen2.5-vl-7b-fvqa.yaml search.text.usd_per_1000=1"
    _json(with_config(verb(search, "estimate", _estimate, "what a run's searches will cost", example)))

    p = verb(search, "export", _export, "write a store as one snapshot file", "mmsr1 search export store.sqlite a.mmsr1snap")
    p.add_argument("store", metavar="STORE", help="a run's store (search.cache)")
    p.add_argument("out", metavar="OUT", help="the file to write")
    _json(p)

    p = verb(search, "import", _import, "check a snapshot and add it to a store", "mmsr1 search import a.mmsr1snap a.sqlite")
    p.add_argument("file", metavar="SNAPSHOT", help="what search export wrote")
    p.add_argument("store", metavar="STORE", help="the store to make or to add to")
    _json(p)

    p = verb(
        search, "stats", _stats, "what a store holds, or what a server has done", "mmsr1 search stats http://127.0.0.1:8100"
    )
    p.add_argument("source", metavar="STORE_OR_URL", nargs="?", default=URL, help="(default: %(default)s)")
    _json(p)

    p = verb(
        search,
        "convert",
        _convert,
        "make recorded image results servable, executing no pickle",
        "mmsr1 search convert cache.pkl --rows fvqa_train.parquet --out recorded",
    )
    p.add_argument("source", metavar="SOURCE", help="the recorded results (a pickle, which is read and not run)")
    p.add_argument("--rows", metavar="PARQUET", nargs="+", required=True, help="the questions that they belong to")
    p.add_argument("--images", metavar="DIR", help="where the pictures lie that the results name")
    p.add_argument("--download", action="store_true", help="fetch the pictures that the results name by URL (guarded)")
    p.add_argument("--out", metavar="DIR", required=True, help="directory to write (search.image.options.path)")
    _json(p)


def _json(p: argparse.ArgumentParser, what: str = "as JSON") -> None:
    p.add_argument("--json", action="store_true", help=what)


def section(config_file: str | None, overrides: list[str]) -> SearchConfig:
    """A `search:` section, from a run's file or from nothing, with overrides of its own keys. UsageError as for a run."""
    from megatron_mmsr1 import config

    named = [f"search.{item}" for item in overrides]
    if config_file is not None:
        return config.load(config_file, named).search
    # Parsed as a run's section, so that a misspelt key gets the same answer as in a run.
    raw: dict[str, Any] = {"model": {"path": "-"}, "search": {}}
    for item in named:
        config.override(raw, item)
    return config.parse(raw, "search serve").search


def _serve(args: argparse.Namespace) -> None:
    cfg = section(args.config, args.override)
    if cfg.corpus is None and cfg.text.backend == "bm25" and cfg.mode != "replay-strict":
        raise UsageError("search serve: name what is searched: corpus=DIRECTORY (mmsr1 atlas build makes one), or text.backend")
    from megatron_mmsr1.search.server import main as server

    what = f"{cfg.text.backend}" + (f" over {cfg.corpus}" if cfg.corpus else "")

    def ready(port: int) -> None:
        url = f"http://{args.host}:{port}"
        print(json.dumps({"url": url}) if args.json else f"searching {what} at {url} (Ctrl-C ends it)", flush=True)

    server.serve(cfg, args.host, args.port, cache_path=Path(cfg.cache) if cfg.cache else None, ready=ready)


def _query(args: argparse.Namespace) -> None:
    if (args.text is None) == (args.image is None):
        raise UsageError("search query: give a text, or --image FILE, not both")
    image = existing(args.image).read_bytes() if args.image else None
    from megatron_mmsr1.cli.search_query import ask

    ask(args.url, text=args.text, image=image, k=args.k, as_json=args.json)


def _estimate(args: argparse.Namespace) -> None:
    from megatron_mmsr1 import config
    from megatron_mmsr1.search.server.estimate import estimate, show

    found = estimate(config.load(args.config, args.override))
    _print(found.as_dict()) if args.json else show(found)


def _export(args: argparse.Namespace) -> None:
    from megatron_mmsr1.search.verbs import export_verb

    export_verb(args.store, args.out, args.json)


def _import(args: argparse.Namespace) -> None:
    from megatron_mmsr1.search.verbs import import_verb

    import_verb(args.file, args.store, args.json)


def _stats(args: argparse.Namespace) -> None:
    from megatron_mmsr1.search.verbs import stats

    stats(args.source, args.json)


def _convert(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from megatron_mmsr1.config.search import FetchSection
    from megatron_mmsr1.search.backends.recorded_convert import convert

    images = existing(args.images) if args.images else None
    rows = [existing(r) for r in args.rows]
    report = convert(existing(args.source), rows, Path(args.out), images, fetch=FetchSection() if args.download else None)
    _print(asdict(report)) if args.json else print(report)


def _print(value: Any) -> None:
    json.dump(value, sys.stdout, indent=1)
    print()
