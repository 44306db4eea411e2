"""The suite as a whole, as a pytest plugin: which tests start processes, how long each may take, which share a worker, and what
each file took."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import resource
from collections import defaultdict
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
# How a function says that it starts a process.
STARTS = re.compile(
    r"\bsubprocess\.|\bSupervisor\(|\bService\(|\blaunch\w*\(|\bmmsr1\(|playwright\b|\bmultiprocessing\b|\btorchrun\b|\bfork\("
    r"|\bRolloutWorker\("
)
LIMIT_S = {"plain": 600, "process": 1800, "slow": 3600}  # generous: the machine may be busy with other work
SHARED = ("engine", "atlas_engine")  # fixtures of a session that every worker would start for itself
LONGEST = ("atlas_engine", "test_megatron", "test_loop", "engine", "test_demo_browser")  # groups

_spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # seconds, CPU seconds


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes and long texts are told by their place, not by what is in them: pytest-xdist needs the same names in every worker,
    and a gzip header holds the second in which it was made."""
    if isinstance(val, bytes) or (isinstance(val, str) and (len(val) > 60 or not val.isprintable())):
        return argname
    return None


@functools.cache
def starting(file: str) -> frozenset[str]:
    """The functions of one of our files that start a process, themselves or by another function of the file."""
    if Path(file).parent != HERE:
        return frozenset()
    text = Path(file).read_text(encoding="utf-8")
    lines = text.splitlines()
    defined = {
        node.name: "\n".join(lines[node.lineno - 1 : node.end_lineno])
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    calls = {name: set(re.findall(r"\b(\w+)\(", source.partition(":\n")[2])) for name, source in defined.items()}
    found = {name for name, source in defined.items() if STARTS.search(source)}
    while more := {name for name in defined.keys() - found if calls[name] & found}:
        found |= more
    return frozenset(found)


def starts_processes(item: Any) -> bool:
    """Whether a test, or a fixture that it uses, starts a process."""
    definitions = list(item._fixtureinfo.name2fixturedefs.values())
    functions: list[Callable[..., Any]] = [item.function, *(d.func for found in definitions for d in found)]
    codes = ((f.__name__, getattr(f, "__code__", None)) for f in functions)
    if any(code is not None and name in starting(code.co_filename) for name, code in codes):
        return True
    return any(asks_for(d.func) for found in definitions for d in found if Path(d.func.__code__.co_filename).parent == HERE)


@functools.cache
def asks_for(fixture: Callable[..., Any]) -> frozenset[str]:
    """Fixtures that one asks for by name when it runs."""
    calls = re.findall(r"getfixturevalue\(([^)]*)\)", inspect.getsource(fixture))
    return frozenset(name for call in calls for name in re.findall(r'"(\w+)"', call))


def uses_shared(item: Any, name: str) -> bool:
    """Whether a test uses the session's fixture of this name, and not one of its file's own."""
    definitions = item._fixtureinfo.name2fixturedefs
    if found := definitions.get(name):
        return found[-1].scope == "session"
    ours = (d.func for found in definitions.values() for d in found if Path(d.func.__code__.co_filename).parent == HERE)
    return any(name in asks_for(f) for f in ours)


def group_of(item: Any, sharing: dict[Path, str]) -> str:
    """Tests of a group run in one worker, one after another: those of a file, and those of all files that share an engine."""
    return sharing.get(item.path, str(item.path.stem))


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[Any]) -> None:
    sharing = {item.path: name for name in SHARED for item in items if uses_shared(item, name)}
    for item in items:
        kind = "slow" if item.get_closest_marker("slow") else "process" if starts_processes(item) else "plain"
        if kind != "plain":
            item.add_marker(pytest.mark.process)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT_S[kind]))
        item.add_marker(pytest.mark.xdist_group(group_of(item, sharing)))
    processes = {group_of(item, sharing) for item in items if item.get_closest_marker("process")}

    def place(item: Any) -> tuple[int, bool]:
        group = group_of(item, sharing)
        return LONGEST.index(group) if group in LONGEST else len(LONGEST), group not in processes

    items.sort(key=place)  # the longest begin first; workers then end together


def pytest_collection_finish(session: Any) -> None:
    """In a worker: pytest-xdist has put the group into each test's id, by which the tests of a group stay together."""
    if getattr(session.config.option, "loadgroup", False) and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("pytest-xdist sees no groups: this pytest is too new for it (pyproject.toml says why)")


def cpu_s() -> float:
    """CPU seconds of this process and of the children that it waited for."""
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any) -> Generator[None, Any, Any]:
    report = yield
    now = cpu_s()
    report.cpu_s = now - item.session.__dict__.get("_cpu_s", now)
    item.session._cpu_s = now
    return report


def pytest_runtest_logreport(report: Any) -> None:
    spent = _spent[report.nodeid.partition("::")[0]]
    spent[0] += report.duration
    spent[1] += getattr(report, "cpu_s", 0.0)  # one that ended its worker has none


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Seconds of each file and its CPU seconds, set-up of its fixtures and processes that ended included, the longest first."""
    if not _spent:
        return
    terminalreporter.section("seconds a file: wall, CPU", sep="-")
    for name, (seconds, cpu) in sorted(_spent.items(), key=lambda x: -x[1][0]):
        terminalreporter.write_line(f"{seconds:8.1f} {cpu:8.1f}  {name}")
    terminalreporter.write_line(f"{sum(s for s, _ in _spent.values()):8.1f} {sum(c for _, c in _spent.values()):8.1f}  in all")
