"""Plain values out of a pickle that is never run.

A pickle is a program. Its instructions are listed (`pickletools.genops`), and those that build lists, dicts, tuples, numbers,
strings and bytes are done by hand here. Everything that would import, call or look something up ends the reading.

Classes that the caller names as harmless stand in the result as `Inert`: a name, with what was written beside it. Nothing of
that name is ever imported.
"""

from __future__ import annotations

import mmap
import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.untyped import is_dict, is_list, is_tuple

MAX_INSTRUCTIONS = 5_000_000  # a list costs 1 byte of a file and 60 of memory
MAX_VALUES = 5_000_000  # counted as often as they are referred to, as whoever walks over the result meets them
MAX_DEPTH = 32

_SCALARS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_KEYS = (str, bytes, int, float, type(None))
# Python 2's module names, which protocols 0 to 2 write.
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
# How protocols 0 to 2 spell bytes: not called, but understood.
_BYTES = {"_codecs.encode", "builtins.bytes", "builtins.bytearray"}
_MAKERS = {"copyreg._reconstructor", "builtins.object", "builtins.str", "builtins.unicode"}


@dataclass(slots=True)
class Inert:
    """An object that was not made: its class's name, the arguments and the state that were written for it."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None


def load(
    path: Path,
    inert: Collection[str] = (),
    *,
    max_instructions: int = MAX_INSTRUCTIONS,
    max_values: int = MAX_VALUES,
    max_depth: int = MAX_DEPTH,
) -> Any:
    """The value in a pickle file of protocol 0 to 5. `inert`: classes ("module.Name") that become `Inert`.

    UsageError, with the instruction and the byte at which it stands, if the file does anything but build plain values, is torn,
    goes on behind its end, contains itself, or is larger or deeper than the caps.
    """
    try:
        with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            machine = _Machine(path, frozenset(inert), len(data))
            return machine.run(data, max_instructions, max_values, max_depth)
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}") from None
    except ValueError:  # an empty file cannot be mapped
        raise UsageError(f"{path} is empty") from None


@dataclass(slots=True, frozen=True)
class _Named:
    """What a pickle named instead of a value; not imported."""

    name: str


class _Mark:
    """Where a run of items begins on the stack."""


_MARK = _Mark()


class _Machine:
    def __init__(self, path: Path, inert: frozenset[str], size: int):
        self._path, self._inert, self._size = path, inert, size
        self._named = _BYTES | (inert and (inert | _MAKERS))
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._encoded = 0  # bytes made from strings: each string of a file is turned once, so never more than the file
        self._op, self._at = "", 0
        self._do: dict[str, Callable[[Any], object]] = {
            **dict.fromkeys(_SCALARS, self._stack.append),
            **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda _: None),
            "NONE": lambda _: self._stack.append(None),
            "NEWTRUE": lambda _: self._stack.append(True),
            "NEWFALSE": lambda _: self._stack.append(False),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._put),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda n: self._stack.append(self._memo[n])),
            "MEMOIZE": lambda _: self._put(len(self._memo)),
            "BYTEARRAY8": lambda b: self._stack.append(bytes(b)),
            "MARK": lambda _: self._stack.append(_MARK),
            "POP": lambda _: self._stack.pop(),
            "POP_MARK": lambda _: self._run(),
            "DUP": lambda _: self._stack.append(self._stack[-1]),
            "EMPTY_LIST": lambda _: self._stack.append([]),
            "EMPTY_DICT": lambda _: self._stack.append({}),
            "EMPTY_TUPLE": lambda _: self._stack.append(()),
            "LIST": lambda _: self._stack.append(self._run()),
            "TUPLE": lambda _: self._stack.append(tuple(self._run())),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "DICT": lambda _: self._items({}, self._run(), push=True),
            "APPEND": lambda _: self._extend([self._value()]),
            "APPENDS": lambda _: self._extend(self._run()),
            "SETITEM": lambda _: self._set_one(),
            "SETITEMS": lambda _: self._set_many(),
            "GLOBAL": lambda both: self._name(*both.split(" ", 1)),
            "STACK_GLOBAL": lambda _: self._stack_global(),
            "REDUCE": lambda _: self._reduce(),
            "NEWOBJ": lambda _: self._new(),
            "BUILD": lambda _: self._build(),
        }

    def run(self, data: mmap.mmap, max_instructions: int, max_values: int, max_depth: int) -> Any:
        try:
            for n, (opcode, argument, position) in enumerate(pickletools.genops(data)):  # type: ignore[arg-type]
                self._op, self._at = opcode.name, position or 0
                if n >= max_instructions:
                    raise UsageError(f"{self._path}: more than {max_instructions} instructions")
                if opcode.name not in self._do:
                    self._refuse()
                self._do[opcode.name](argument)
        # What pickletools raises on bytes that are no pickle, or one cut short; and what a stack or a memo does that lacks the
        # thing asked for.
        except (ValueError, IndexError, EOFError, KeyError, TypeError, OverflowError) as e:
            raise UsageError(
                f"{self._path} is not a pickle, or a torn one: byte {self._at}, {self._op or 'start'}: {e}"
            ) from None
        if len(self._stack) != 1 or self._at + 1 != self._size:
            behind = self._size - self._at - 1
            raise UsageError(f"{self._path}: {len(self._stack)} values and {behind} bytes behind them; need exactly one value")
        self._measure(self._stack[0], max_values, max_depth)
        return self._stack[0]

    def _refuse(self, what: str = "") -> NoReturn:
        raise UsageError(
            f"{self._path}: instruction {self._op}{what} at byte {self._at}; only lists, dicts, tuples, numbers, strings and "
            "bytes are read, and nothing is executed"
        )

    # ------------------------------------------------------------------------------------------------------------ values
    def _put(self, n: int) -> None:
        self._memo[n] = self._stack[-1]

    def _value(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value must stand")
        return value

    def _run(self) -> list[Any]:
        """What stands above the last mark, which goes too."""
        items: list[Any] = []
        while (value := self._stack.pop()) is not _MARK:
            items.append(value)
        items.reverse()
        return items

    def _tuple(self, n: int) -> None:
        self._stack.append(tuple(reversed([self._value() for _ in range(n)])))

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not is_list(target):
            self._refuse(f" on a {type(target).__name__}")
        target.extend(items)

    def _set_one(self) -> None:
        value, key = self._value(), self._value()
        self._items(self._stack[-1], [key, value])

    def _set_many(self) -> None:
        items = self._run()
        self._items(self._stack[-1], items)

    def _items(self, target: Any, items: list[Any], *, push: bool = False) -> None:
        if not isinstance(target, dict):
            self._refuse(f" on a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, _KEYS):
                self._refuse(f" with a {type(key).__name__} for a key")
            target[key] = value
        if push:
            self._stack.append(target)

    # ------------------------------------------------------------------------------------------ names, and what uses them
    def _name(self, module: str, name: str) -> None:
        full = f"{_RENAMED.get(module, module)}.{name}"
        if full not in self._named:
            self._refuse(f" {module}.{name}")
        self._stack.append(_Named(full))

    def _stack_global(self) -> None:
        name, module = self._value(), self._value()
        if not (isinstance(module, str) and isinstance(name, str)):
            self._refuse(" of what is no name")
        self._name(module, name)

    def _reduce(self) -> None:
        args, what = self._value(), self._value()
        name = what.name if isinstance(what, _Named) else ""
        if not name or not is_tuple(args):
            self._refuse(f" of a {type(what).__name__}")
        if name in _BYTES:
            self._stack.append(self._bytes(name, args))
        elif name == "copyreg._reconstructor" and len(args) == 3 and self._is_class(args[0]):
            self._stack.append(Inert(args[0].name, args[2:]))
        elif name in self._inert:
            self._stack.append(Inert(name, args))
        else:
            self._refuse(f" of {name}")

    def _bytes(self, name: str, args: tuple[Any, ...]) -> bytes:
        made = b""
        if len(args) == 2 and isinstance(args[0], str) and args[1] in ("latin1", "latin-1"):
            made = args[0].encode("latin-1")
        elif len(args) == 1 and isinstance(args[0], bytes) and name != "_codecs.encode":
            made = args[0]
        elif args:
            self._refuse(f" of {name}")
        self._encoded += len(made)
        if self._encoded > self._size:
            raise UsageError(f"{self._path}: makes more bytes than it has (byte {self._at}): a bomb")
        return made

    def _new(self) -> None:
        args, what = self._value(), self._value()
        if not self._is_class(what) or not is_tuple(args):
            self._refuse(f" of a {type(what).__name__}")
        self._stack.append(Inert(what.name, args))

    def _is_class(self, what: Any) -> TypeGuard[_Named]:
        return isinstance(what, _Named) and what.name in self._inert

    def _build(self) -> None:
        state = self._value()
        target = self._stack[-1]
        if not isinstance(target, Inert):
            self._refuse(f" on a {type(target).__name__}")
        target.state = state

    # ------------------------------------------------------------------------------------------------------------ limits
    def _measure(self, root: Any, max_values: int, max_depth: int) -> None:
        """A memo lets a few bytes stand for any number of values; whoever walks over the result would meet each of them."""
        sizes: dict[int, tuple[int, int]] = {}  # of a finished container: values in it, levels
        above: set[int] = set()
        todo: list[tuple[Any, bool]] = [(root, False)]
        while todo:
            value, finished = todo.pop()
            if isinstance(value, _Named | _Mark):
                what = f"the name {value.name}" if isinstance(value, _Named) else "a mark"
                raise UsageError(f"{self._path}: holds {what} where a value must stand")
            children = _children(value)
            if children is None:
                continue
            if finished:
                inner = [sizes.get(id(c), (1, 0)) for c in children]
                count, depth = 1 + sum(n for n, _ in inner), 1 + max((d for _, d in inner), default=0)
                if count > max_values or depth > max_depth:
                    raise UsageError(f"{self._path}: over {max_values} values, or nested deeper than {max_depth}")
                sizes[id(value)] = count, depth
                above.discard(id(value))
            elif id(value) in above:
                raise UsageError(f"{self._path}: holds a {type(value).__name__} that contains itself")
            elif id(value) not in sizes:
                above.add(id(value))
                todo.append((value, True))
                todo.extend((c, False) for c in children)


def _children(value: Any) -> list[Any] | None:
    """What a container holds; None for a scalar."""
    if is_dict(value):
        return list(value.values())
    if is_list(value) or is_tuple(value):
        return list(value)
    if isinstance(value, Inert):
        return [value.args, value.state]
    return None
