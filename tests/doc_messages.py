"""What the code can say, as templates: the text of every string in it, with … for what is filled in."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("megatron_mmsr1", "serving", "demo", "scripts")


def _template(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[-\d.]*[sdrfg]", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join((_template(v) or "") if isinstance(v, ast.Constant) else "…" for v in node.values)
    return None


def templates(path: Path) -> list[str]:
    """Of one file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [" ".join(t.split()) for node in nodes if (t := _template(node)) and len(t) > 12]


def _trees() -> Iterator[ast.AST]:
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield ast.parse(path.read_text(encoding="utf-8"))


@cache
def said() -> str:
    """Every template, and the shell scripts, whose variables stay as they are; a line each."""
    found = [t for tree in _trees() for node in ast.walk(tree) if (t := _template(node)) and len(t) > 12]
    scripts = [p.read_text(encoding="utf-8") for room in ROOMS for p in sorted((ROOT / room).rglob("*.sh"))]
    return "\n".join([*(" ".join(t.split()) for t in found), *scripts])


def warnings() -> list[str]:
    """The template of every warning that a run, a server or a store logs."""
    names, found = ("warn", "_warn", "warning"), []
    for tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names and node.args:
                text = _template(node.args[0])
                if text and text.strip("… "):
                    found.append(" ".join(text.split()))
    return found


def quoted(page: str) -> list[str]:
    """The messages that a page of docs/ quotes: the first cell of a row, or a heading, in backquotes."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^(?:\| |#+ )`([^`]+)`", text, re.MULTILINE)
