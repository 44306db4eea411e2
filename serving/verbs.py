"""`mmsr1 serve` from the command's arguments. megatron_mmsr1/cli/serve.py declares them, and brings the app."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from megatron_mmsr1.errors import UsageError
from serving import launch, settings
from serving.keys import new_key
from serving.launch import App
from serving.settings import ServeConfig

STATE = Path("build")  # git ignores it
KEYS = "gateway.keys"


def serve(args: argparse.Namespace, app: Callable[[], App]) -> None:
    """`app` makes what is mounted beside the API; where it raises UsageError the API is served alone, and that is said."""
    if args.model is not None and "=" in args.model and not Path(args.model).exists():
        args.model, args.override = None, [args.model, *args.override]
    if args.new_key is not None:
        _new_key(args)
        return
    if args.model is None and args.config is None:
        raise UsageError("serve: name a checkpoint, as in: mmsr1 serve runs/atlas/model")
    cfg = settings.load(args.model, args.config, args.override)
    launch.serve(
        cfg,
        engines=[*cfg.engine.urls, *args.engine],
        search=args.search or cfg.search.url,
        no_search=args.no_search,
        app=None if args.no_demo else _found(app),
        state=Path(args.state or STATE / "serve" / cfg.name),
    )


def _found(app: Callable[[], App]) -> App | None:
    try:
        return app()
    except UsageError as e:
        print(f"mmsr1: without the app: {e}", file=sys.stderr)
        return None


def _new_key(args: argparse.Namespace) -> None:
    """Into the file that the config names; the key alone goes to stdout."""
    path = _keys_file(args)
    key = new_key(Path(path), args.new_key)
    print(key, flush=True)
    print(f"mmsr1: keep it, it is shown this once; its hash is in {path} (serve with gateway.keys={path})", file=sys.stderr)


def _keys_file(args: argparse.Namespace) -> str:
    known = args.model is not None or args.config is not None
    cfg: ServeConfig = settings.load(args.model, args.config, args.override if known else ["model.path=none", *args.override])
    return cfg.gateway.keys or KEYS
