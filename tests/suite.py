"""The suite as a whole, as a pytest plugin: which tests start processes, how long each may take, which share a worker, and what
each file took."""

from __future__ import annotations

import functools
import gc
import inspect
import re
import resource
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
# What a function names that starts a process.
STARTS = re.compile(
    r"\w*subprocess\w*|Supervisor|Service|launch\w*|mmsr1|(sync_)?playwright.*|multiprocessing|torchrun|fork|RolloutWorker|Scoring|Extractors"
)
LIMIT_S = {"plain": 600, "process": 1800, "slow": 3600}  # generous: the machine may be busy with other work
SHARED = ("engine", "atlas_engine")  # fixtures of a session that every worker would start for itself
LONGEST = ("atlas_engine", "test_megatron", "test_loop", "engine", "test_demo_browser")  # groups

_spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # seconds, CPU seconds


def pytest_configure() -> None:
    """A suite that a script started in the background was told to ignore Ctrl-C, and so would be all that its tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes and long texts are told by their place, not by what is in them: pytest-xdist needs the same names in every worker,
    and a gzip header holds the second in which it was made."""
    if isinstance(val, bytes) or (isinstance(val, str) and (len(val) > 60 or not val.isprintable())):
        return argname
    return None


def fixtures(item: Any) -> list[Callable[..., Any]]:
    """Our fixtures that a test uses, those of its fixtures included."""
    found = (d.func for definitions in item._fixtureinfo.name2fixturedefs.values() for d in definitions)
    return [f for f in found if ours(f)]


def ours(value: Any) -> bool:
    """Whether a function, a class or a module is one of this folder's."""
    module = value if isinstance(value, ModuleType) else sys.modules.get(getattr(value, "__module__", None) or "")
    return Path(getattr(module, "__file__", None) or "/").parent == HERE


def codes(value: Any) -> Iterator[CodeType]:
    """The code of a function, with that of the functions in it; of a class, that of its methods."""
    pending = [f for f in vars(value).values() if callable(f)] if isinstance(value, type) else [value]
    found = [c for f in pending if isinstance(c := getattr(inspect.unwrap(f), "__code__", None), CodeType)]
    while found:
        yield (code := found.pop())
        found += [c for c in code.co_consts if isinstance(c, CodeType)]


@functools.cache
def names(value: Any) -> frozenset[str]:
    """What a function or a class names: globals, attributes, imports."""
    return frozenset(name for code in codes(value) for name in code.co_names)


@functools.cache
def used(value: Any) -> frozenset[Any]:
    """Functions and classes of ours that a function or a class of ours names, from other files of ours too."""
    scope = vars(sys.modules[value.__module__])
    found = [scope[name] for name in names(value) if name in scope]
    found += [
        getattr(m, name) for m in found if isinstance(m, ModuleType) and ours(m) for name in names(value) if hasattr(m, name)
    ]
    return frozenset(f for f in found if isinstance(f, type | Callable) and hasattr(f, "__qualname__") and ours(f))


@functools.cache
def starts(function: Callable[..., Any]) -> bool:
    """Whether a function starts a process, itself or by others of ours."""
    seen: set[Any] = set()
    pending = {function}
    while pending:
        if any(STARTS.fullmatch(name) for f in pending for name in names(f)):
            return True
        seen |= pending
        pending = {f for p in pending for f in used(p)} - seen
    return False


def starts_processes(item: Any) -> bool:
    """Whether a test, or a fixture that it uses, starts a process; where only the project's code shows it, the test says so."""
    marked = item.get_closest_marker("process") is not None
    return marked or any(starts(f) or asks_for(f) for f in [item.function, *fixtures(item)])


@functools.cache
def asks_for(fixture: Callable[..., Any]) -> frozenset[str]:
    """Fixtures that one asks for by name when it runs."""
    if "getfixturevalue" not in names(fixture):
        return frozenset()
    return frozenset(c for code in codes(fixture) for c in code.co_consts if isinstance(c, str))


def uses_shared(item: Any, name: str) -> bool:
    """Whether a test uses the session's fixture of this name, and not one of its file's own."""
    if found := item._fixtureinfo.name2fixturedefs.get(name):
        return found[-1].scope == "session"
    return any(name in asks_for(f) for f in fixtures(item))


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
    gc.freeze()  # all that was imported need not be looked through at each full collection


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
