"""`mmsr1 demo` from the command's arguments: the Atlas world, its model, and the app, served as any model is."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from demo.app import DemoApp
from demo.atlas import prepare
from serving import launch, settings

STATE = Path("build", "demo")  # git ignores it


def demo(args: argparse.Namespace) -> None:
    """Raises UsageError where Gradio is not installed."""
    app = DemoApp()
    state = Path(args.state or STATE)
    cfg = settings.override(prepare(state), args.override)
    launch.serve(
        cfg,
        engines=cfg.engine.urls,
        search=cfg.search.url,
        app=app,
        state=state,
        opened=webbrowser.open if args.open else None,
    )
