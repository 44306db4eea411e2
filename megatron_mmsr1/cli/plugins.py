"""`mmsr1 plugins`: what each seam has to choose from, by name, and from which file."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from megatron_mmsr1.cli.parts import Verbs, verb


def add(verbs: Verbs[argparse.ArgumentParser]) -> None:
    p = verb(
        verbs, "plugins", _plugins, "list what can be named in a config: rewards, tools, backends, ...", "mmsr1 plugins reward"
    )
    p.add_argument("kind", metavar="KIND", nargs="?", help="only this seam, e.g. reward (default: all)")
    p.add_argument("--json", action="store_true", help="as JSON")


def _plugins(args: argparse.Namespace) -> None:
    from megatron_mmsr1.plugins.seams import seam, seams

    registries = [seam(args.kind)] if args.kind else seams()
    listed = [(r, list(r.listed())) for r in registries]
    if args.json:
        json.dump([asdict(part) | {"key": r.key} for r, parts in listed for part in parts], sys.stdout, indent=1)
        print()
        return
    for r, parts in listed:
        print(f"{r.kind}  ({r.key}=NAME, or package.module:Object, or path/to/file.py:Object)")
        width = max((len(p.name) for p in parts), default=0)
        for p in parts:
            print(f"  {p.name:{width}}  {p.file}" + ("" if p.origin == "built in" else f"  ({p.origin})"))
