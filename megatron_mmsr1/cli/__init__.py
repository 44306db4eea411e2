"""`mmsr1 <verb>`: the one command, a file a group of verbs."""

from megatron_mmsr1.cli.entry import build_parser, main, parse

__all__ = ["build_parser", "main", "parse"]
