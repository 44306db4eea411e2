"""`mmsr1 atlas <verb>` and `mmsr1 maths <verb>`: made worlds as files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from megatron_mmsr1.cli.parts import Verbs, existing, group, verb
from megatron_mmsr1.errors import UsageError


def add(verbs: Verbs[argparse.ArgumentParser]) -> None:
    atlas = group(verbs, "atlas", "build or look at an Atlas world")
    p = verb(
        atlas,
        "build",
        _atlas_build,
        "draw a world, its questions and its model",
        "mmsr1 atlas build data/atlas entities=300 seed=1",
    )
    _out_and_knobs(p, "entities=300 homonyms=0.1")
    p = verb(atlas, "inspect", _atlas_inspect, "print what a world holds", "mmsr1 atlas inspect build/atlas")
    p.add_argument("directory", metavar="DIR", help="what atlas build wrote")

    maths = group(verbs, "maths", "build a world of small arithmetic in pictures")
    p = verb(
        maths,
        "build",
        _maths_build,
        "draw its problems, in open-r1's columns, and its model",
        "mmsr1 maths build data/maths train_questions=4000 seed=1",
    )
    _out_and_knobs(p, "train_questions=400 heldout_share=0.5")


def _out_and_knobs(p: argparse.ArgumentParser, example: str) -> None:
    p.add_argument("out", metavar="OUT", help="directory to write")
    p.add_argument("override", metavar="key=value", nargs="*", default=[], help=f"knobs of the world, e.g. {example}")


def _atlas_build(args: argparse.Namespace) -> None:
    from megatron_mmsr1.atlas.build import build
    from megatron_mmsr1.atlas.spec import load_spec
    from megatron_mmsr1.procs.progress import say

    spec, out = load_spec(None, **_knobs(args)), _directory(args)
    say(f"building a world of {spec.entities} entities in {out}: pictures, questions, pages, model ...")
    build(spec, out)
    print(f"wrote {out}; look at it: mmsr1 atlas inspect {out}")


def _atlas_inspect(args: argparse.Namespace) -> None:
    from megatron_mmsr1.atlas.inspect import inspect

    print(inspect(existing(args.directory)))


def _maths_build(args: argparse.Namespace) -> None:
    from megatron_mmsr1.maths.build import build, load_spec
    from megatron_mmsr1.procs.progress import say

    spec, out = load_spec(**_knobs(args)), _directory(args)
    say(f"building {spec.train_questions} + {spec.heldout_questions} problems in {out}: pictures, solutions, model ...")
    build(spec, out)
    print(f"wrote {out}: train.parquet, heldout.parquet, model")


def _knobs(args: argparse.Namespace) -> dict[str, Any]:
    from megatron_mmsr1 import config

    knobs: dict[str, Any] = {}
    for item in args.override:
        config.override(knobs, item)
    return knobs


def _directory(args: argparse.Namespace) -> Path:
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: name a directory to build the world in")
    return out
