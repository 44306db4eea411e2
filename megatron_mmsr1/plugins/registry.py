"""One registry a seam: what ships (a file of the seam's room), what an installed package announces (an entry point), and what a
person wrote (`package.module:Object`, or `path/to/file.py:Object`).

A part that ships is one file: `ROOM/NAME.py` with the seam's attribute in it (`TOOL`, `REWARD`, ...) is found by its name, and
no list names it. A file without that attribute helps the others and is no part. An installed package adds a part by an entry
point of the group `megatron_mmsr1.KIND`. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, cast

from megatron_mmsr1.errors import UsageError

NOT_PARTS = ("base",)
# From the name that a part was asked for by and the object found: the rules of the contract that it breaks, a sentence each.
Check = Callable[[str, Any], list[str]]


@dataclass(frozen=True, slots=True)
class Registered:
    """A part as `mmsr1 plugins` lists it."""

    kind: str
    name: str
    origin: str  # "built in", "entry point of DISTRIBUTION", "yours"
    file: str


class Registry[T]:
    """The parts of one seam.

    `kind` is its name for people and entry points, `room` the package whose files are the parts that ship, `attribute` what
    such a file calls its part, `key` the setting that names one (for messages). `check` tells which rules of the contract an
    object breaks; an object that breaks any is refused with the file that it comes from. `shared`: names of parts that differ
    by a row of a table, and the file of the room that holds them all. `renamed`: former names, and what the part is called.
    """

    def __init__(
        self,
        kind: str,
        room: str,
        attribute: str,
        *,
        key: str,
        check: Check,
        shared: Mapping[str, str] = MappingProxyType({}),
        renamed: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.kind, self.room, self.attribute, self.key = kind, room, attribute, key
        self._check, self._shared, self._renamed = check, shared, renamed
        self._found: dict[str, T] = {}

    @property
    def group(self) -> str:
        """The entry points' group."""
        return f"megatron_mmsr1.{self.kind}"

    def names(self) -> list[str]:
        """Every name that needs no module: what ships and what is installed, sorted."""
        return sorted({*self._shipped(), *(e.name for e in _announced(self.group))})

    def get(self, name: str) -> T:
        """The part of this name. Raises UsageError that names the setting, and the file and the broken rule of one that does
        not keep the seam's contract."""
        if name not in self._found:
            part, file = self._load(name)
            broken = self._check(name, part)
            if broken:
                raise UsageError(f"{self.key}={name}: {file} breaks the contract of a {self.kind}: {'; '.join(broken)}")
            self._found[name] = cast(T, part)
        return self._found[name]

    def listed(self) -> Iterator[Registered]:
        """All of them, with the file of each; those that ship first."""
        shipped = self._shipped()
        for name, module in sorted(shipped.items()):
            found = importlib.util.find_spec(module)
            yield Registered(self.kind, name, "built in", str(found.origin if found else module))
        for entry in sorted(_announced(self.group), key=lambda e: e.name):
            if entry.name not in shipped:
                origin = f"entry point of {entry.dist.name if entry.dist else entry.value}"
                found = importlib.util.find_spec(entry.value.partition(":")[0])
                yield Registered(self.kind, entry.name, origin, str(found.origin if found else entry.value))

    def _shipped(self) -> dict[str, str]:
        """Name -> module."""
        room = importlib.util.find_spec(self.room)
        paths = list(room.submodule_search_locations or []) if room else []
        modules = (m.name for m in pkgutil.iter_modules(paths))
        found = {m: m for m in modules if not m.startswith("_") and m not in NOT_PARTS} | dict(self._shared)
        return {n: f"{self.room}.{m}" for n, m in found.items() if _defines(f"{self.room}.{m}", self.attribute)}

    def _load(self, name: str) -> tuple[Any, str]:
        """The object, and the file that it comes from."""
        if ":" in name:
            where, _, attribute = name.rpartition(":")
            return self._attribute(self._module(name, where), attribute, name)
        shipped = self._shipped()
        if name in shipped:
            return self._attribute(importlib.import_module(shipped[name]), self.attribute, name)
        for entry in _announced(self.group):
            if entry.name == name:
                where, _, attribute = entry.value.partition(":")
                return self._attribute(self._module(name, where), attribute, name)
        if name in self._renamed:
            raise UsageError(f"{self.key}={name}: this {self.kind} is called {self._renamed[name]} now")
        known = self.names()
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(
            f"{self.key}={name}: no such {self.kind}; {hint}there are {', '.join(known)}, and your own as "
            "package.module:Object or path/to/file.py:Object"
        )

    def _module(self, name: str, where: str) -> ModuleType:
        try:
            return _from_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
        except (ImportError, SyntaxError, OSError) as e:
            raise UsageError(f"{self.key}={name}: {where} cannot be imported ({type(e).__name__}: {e})") from e

    def _attribute(self, module: ModuleType, attribute: str, name: str) -> tuple[Any, str]:
        file = str(getattr(module, "__file__", module.__name__))
        if not hasattr(module, attribute):
            raise UsageError(f"{self.key}={name}: {file} has no {attribute}")
        return getattr(module, attribute), file


def _announced(group: str) -> Iterator[importlib.metadata.EntryPoint]:
    return (e for e in _entry_points(tuple(sys.path)) if e.group == group)


@functools.cache
def _entry_points(path: tuple[str, ...]) -> importlib.metadata.EntryPoints:
    """Those of every package on `path`, which is sys.path: to look costs a file of each."""
    return importlib.metadata.entry_points()


@functools.cache
def _defines(module: str, attribute: str) -> bool:
    """Whether the module's file assigns, defines or imports the attribute at its top level; told from its text, so nothing is
    imported."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        return False
    text = Path(found.origin).read_text(encoding="utf-8")
    a = re.escape(attribute)
    said = rf"^(?:{a}\s*[:=]|(?:async\s+)?(?:def|class)\s+{a}\b|from\s.*\bimport\b.*\b{a}\b)"
    return re.search(said, text, re.MULTILINE) is not None


def _from_file(path: Path) -> ModuleType:
    """A module from a file that need not be on the path; one object a file, however often it is asked for."""
    path = path.resolve()
    name = f"_mmsr1_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: its classes look their module up, and pickles find it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def requires(
    *,
    methods: tuple[str, ...] = (),
    async_methods: tuple[str, ...] = (),
    attributes: tuple[str, ...] = (),
    settings: bool = True,
) -> Check:
    """A check of a part's members: there and callable, or a coroutine function; `settings`: its `Settings` is a Section."""

    def check(name: str, part: Any) -> list[str]:
        from megatron_mmsr1.config.section import Section

        broken = [f"it has no method {m}" for m in (*methods, *async_methods) if not callable(getattr(part, m, None))]
        for m in async_methods:
            if callable(getattr(part, m, None)) and not inspect.iscoroutinefunction(getattr(part, m)):
                broken.append(f"{m} must be an async method")
        broken += [f"it has no {a}" for a in attributes if not hasattr(part, a)]
        theirs = getattr(part, "Settings", None)
        if settings and not (isinstance(theirs, type) and issubclass(theirs, Section)):
            broken.append("its Settings must be a subclass of megatron_mmsr1.config.section.Section")
        return broken

    return check


def is_callable(signature: str) -> Check:
    """A check of a part that is a function; `signature` is shown to whoever gives something else."""

    def check(name: str, part: Any) -> list[str]:
        return [] if callable(part) else [f"it must be a function {signature}, not a {type(part).__name__}"]

    return check
