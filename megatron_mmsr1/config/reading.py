"""YAML as plain data, and `a.b=value` on top of it: what is wrong is told by file, line and key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.untyped import is_dict

_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but 24:00:00 is a text: not 86400, a number in base 60."""


def _int(loader: yaml.SafeLoader, node: Any) -> int | str:
    return str(node.value) if ":" in node.value else loader.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _int)


def load_yaml(text: str) -> Any:
    """As `yaml.safe_load`, times apart. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping of sections. UsageError for anything else, with the line and column of bad YAML."""
    try:
        raw = load_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as e:
        raise UsageError(f"{path}: byte {e.start} is not UTF-8: save the file as UTF-8 text") from None
    except yaml.YAMLError as e:
        raise UsageError(f"{path}: not valid YAML: {complaint(e)}") from None
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}") from None
    if not is_dict(raw):
        found = "is empty" if raw is None else f"holds a {type(raw).__name__}"
        raise UsageError(f"{path}: must be a mapping of sections, and {found}")
    return raw


def complaint(error: yaml.YAMLError) -> str:
    """What YAML says, in a line: `line 3, column 5: expected ',' or ']', but got ':'`."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    said = [s for s in (getattr(error, "context", None), getattr(error, "problem", None)) if s]
    words = ", ".join(said) or str(getattr(error, "reason", None) or type(error).__name__)
    return words if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {words}"


def override(raw: dict[str, Any], item: str) -> None:
    """Set `a.b=value` in plain data, in place. Raises UsageError that names the override."""
    key, eq, value = item.partition("=")
    if not eq or not key:
        raise UsageError(f"override {item!r}: write it as section.key=value")
    at = raw
    *parents, leaf = key.split(".")
    for part in parents:
        if at.get(part) is None:  # absent, or a section with nothing in it
            at[part] = {}
        below = at[part]
        if not is_dict(below):
            raise UsageError(f"override {item!r}: {part} is not a section")
        at = below
    try:
        at[leaf] = load_yaml(value)
    except yaml.YAMLError as e:
        raise UsageError(f"override {item!r}: the value is not valid YAML: {complaint(e)}") from None
    # YAML 1.1 reads 1e-4 as a string; unquoted, it is a number here.
    if at[leaf] == value.strip() and _EXPONENT.fullmatch(at[leaf]):
        at[leaf] = float(at[leaf])
