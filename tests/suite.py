"""The suite as a whole, as a pytest plugin: which tests start processes, how long each may take, what each file took."""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
# How a function says that it starts a process.
STARTS = re.compile(
    r"\bsubprocess\.|\bSupervisor\(|\bService\(|\blaunch\w*\(|\bmmsr1\(|\bplaywright\b|\bmultiprocessing\b|\btorchrun\b|\bfork\("
    r"|\bRolloutWorker\("
)
LIMIT_S = {"plain": 300, "process": 900, "slow": 3600}  # generous: the machine may be busy with other work

_spent: dict[str, float] = defaultdict(float)


@functools.cache
def starting(path: Path) -> frozenset[str]:
    """The functions of a file that start a process, themselves or by another function of the file."""
    text = path.read_text(encoding="utf-8")
    defined = {
        node.name: ast.get_source_segment(text, node) or ""
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    found = {name for name, source in defined.items() if STARTS.search(source)}
    while True:
        calls = re.compile(rf"\b({'|'.join(map(re.escape, found))})\(") if found else None
        more = {n for n, source in defined.items() if calls and n not in found and calls.search(source.partition(":\n")[2])}
        if not more:
            return frozenset(found)
        found |= more


def starts_processes(item: Any) -> bool:
    """Whether a test, or a fixture that it uses, starts a process."""
    definitions = item._fixtureinfo.name2fixturedefs.values()
    functions: list[Callable[..., Any]] = [item.function, *(d.func for found in definitions for d in found)]
    for function in functions:
        code = getattr(function, "__code__", None)
        path = Path(code.co_filename) if code else Path()
        if path.parent == HERE and function.__name__ in starting(path):
            return True
    return False


def pytest_collection_modifyitems(items: list[Any]) -> None:
    for item in items:
        kind = "slow" if item.get_closest_marker("slow") else "process" if starts_processes(item) else "plain"
        if kind != "plain":
            item.add_marker(pytest.mark.process)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT_S[kind]))


def pytest_runtest_logreport(report: Any) -> None:
    _spent[report.nodeid.partition("::")[0]] += report.duration


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Seconds of each file, set-up of its fixtures included, the longest first."""
    if not _spent:
        return
    terminalreporter.section("seconds a file", sep="-")
    for name, seconds in sorted(_spent.items(), key=lambda x: -x[1]):
        terminalreporter.write_line(f"{seconds:8.1f}  {name}")
