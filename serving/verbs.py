"""`mmsr1 serve` and `mmsr1 demo`, from the command's arguments. megatron_mmsr1/cli/serve.py declares them."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from pathlib import Path

from megatron_mmsr1.errors import UsageError
from serving import launch, settings
from serving.keys import new_key
from serving.settings import ServeConfig

STATE = Path("build")  # git ignores it
KEYS = "gateway.keys"


def serve(args: argparse.Namespace) -> None:
    if args.model is not None and "=" in args.model and not Path(args.model).exists():
        args.model, args.override = None, [args.model, *args.override]
    if args.new_key is not None:
        _new_key(args)
        return
    if args.model is None and args.config is None:
        raise UsageError("serve: name a checkpoint, as in: mmsr1 serve runs/atlas/model")
    cfg = settings.load(args.model, args.config, args.override)
    demo = not args.no_demo
    if demo and not launch.has_gradio():
        print(f"mmsr1: without the app: {launch.NO_GRADIO}", file=sys.stderr)
        demo = False
    launch.serve(
        cfg,
        engines=[*cfg.engine.urls, *args.engine],
        search=args.search or cfg.search.url,
        no_search=args.no_search,
        demo=demo,
        state=Path(args.state or STATE / "serve" / cfg.name),
    )


def demo(args: argparse.Namespace) -> None:
    if not launch.has_gradio():
        raise UsageError(launch.NO_GRADIO)
    from demo.atlas import prepare

    state = Path(args.state or STATE / "demo")
    cfg = settings.override(prepare(state), args.override)
    launch.serve(
        cfg,
        engines=cfg.engine.urls,
        search=cfg.search.url,
        state=state,
        opened=webbrowser.open if args.open else None,
    )


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
