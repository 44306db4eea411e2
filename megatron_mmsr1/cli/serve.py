"""`mmsr1 serve` and `mmsr1 demo`: what they are told. What they do is in serving/ and demo/, which stand above this package and
are loaded only when they run; the app is brought to the server here, which so knows nothing of it."""

from __future__ import annotations

import argparse
import importlib

from megatron_mmsr1.cli.parts import Verbs, verb

_STATE = "directory for logs and the search's store (default: %s)"


def add(verbs: Verbs[argparse.ArgumentParser]) -> None:
    p = verb(verbs, "serve", _serve, "serve a model with live search", "mmsr1 serve runs/atlas/model search.corpus=build/atlas")
    p.add_argument("model", metavar="MODEL", nargs="?", help="a checkpoint, with its serving.yaml if there is one")
    p.add_argument(
        "override", metavar="key=value", nargs="*", default=[], help="settings that replace the file's, e.g. gateway.port=9000"
    )
    p.add_argument("--config", metavar="FILE", help="settings to use instead of the checkpoint's serving.yaml")
    p.add_argument(
        "--engine", metavar="URL", action="append", default=[], help="an SGLang server that runs already (again for more)"
    )
    p.add_argument("--search", metavar="URL", help="a search server that runs already (mmsr1 search serve)")
    p.add_argument("--no-search", action="store_true", help="without searches: the model answers from what it knows")
    p.add_argument("--no-demo", action="store_true", help="the API alone, without the app")
    p.add_argument("--new-key", metavar="NAME", help="make an API key, print it, and end")
    p.add_argument("--state", metavar="DIR", help=_STATE % "build/serve/NAME")

    p = verb(verbs, "demo", _demo, "see a small model search, in the browser", "mmsr1 demo --open gateway.port=9000")
    p.add_argument(
        "override", metavar="key=value", nargs="*", default=[], help="settings of serve, e.g. search.text.backend=serper"
    )
    p.add_argument("--open", action="store_true", help="open the browser when it is ready")
    p.add_argument("--state", metavar="DIR", help=_STATE % "build/demo")


def _serve(args: argparse.Namespace) -> None:
    importlib.import_module("serving.verbs").serve(args, lambda: importlib.import_module("demo.app").DemoApp())


def _demo(args: argparse.Namespace) -> None:
    importlib.import_module("demo.verbs").demo(args)
