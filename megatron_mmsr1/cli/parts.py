"""How a verb is declared: shared by the command's parts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from megatron_mmsr1.errors import UsageError

Verbs = argparse._SubParsersAction  # pyright: ignore[reportPrivateUsage]  # what add_subparsers returns; it has no public name


class Format(argparse.RawDescriptionHelpFormatter):
    """Keeps the example's lines as they are."""


def verb(
    group: Verbs[argparse.ArgumentParser], name: str, run: Callable[[argparse.Namespace], None], what: str, example: str
) -> argparse.ArgumentParser:
    p = group.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=f"example:\n  {example}", formatter_class=Format
    )
    p.set_defaults(run=run)
    return p


def group(verbs: Verbs[argparse.ArgumentParser], name: str, what: str, *, also: str = "") -> Verbs[argparse.ArgumentParser]:
    """`also`: another name that is understood."""
    others, said = [also] if also else [], f"{what[0].upper()}{what[1:]}."
    p = verbs.add_parser(name, help=what, description=said, formatter_class=Format, aliases=others)
    p.set_defaults(group=p)
    return p.add_subparsers(title="verbs", metavar="VERB")


def with_config(p: argparse.ArgumentParser) -> argparse.ArgumentParser:
    p.add_argument("config", metavar="CONFIG", help="a run as YAML (configs/ holds examples)")
    p.add_argument("override", metavar="key=value", nargs="*", default=[], help=KEY_VALUE)
    return p


KEY_VALUE = "settings that replace the file's, e.g. train.steps=20 (values are YAML)"


def existing(path: str) -> Path:
    if not Path(path).exists():
        raise UsageError(f"there is nothing at {path}")
    return Path(path)


def port(text: str) -> int:
    """A TCP port as argparse reads it, 0 for any free one."""
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port: 0 (any) to 65535")
    return int(text)
