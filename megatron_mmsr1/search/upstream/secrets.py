"""API keys: from the environment, or from a file that only its owner can read. They are held in objects that do not print."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from megatron_mmsr1.errors import UsageError


class Secret:
    """A key. It shows itself to nobody who does not ask for `value`: not in a repr, an f-string, a traceback or a dump."""

    __slots__ = ("_value",)

    def __init__(self, value: str):
        self._value = value

    @property
    def value(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, _: str) -> str:
        return repr(self)

    def __reduce__(self) -> str:
        raise TypeError("a secret is not written anywhere")


class Keys:
    """`file`: NAME=value lines, mode 0600 or stricter (`search.keys`). The environment wins over it."""

    def __init__(self, file: str | None = None, environ: Mapping[str, str] = os.environ):
        self._environ = environ
        self._file = file
        self._held = {} if file is None else _read(Path(file))

    def get(self, name: str) -> Secret | None:
        """None if there is none. UsageError for one that no HTTP header can carry, which would fail far from its cause."""
        value = self._environ.get(name, "").strip() or self._held.get(name, "").strip()
        if any(not "!" <= c <= "~" for c in value):
            raise UsageError(f"{name} is no API key: it holds spaces or characters outside of ASCII; copy it again")
        return Secret(value) if value else None

    def require(self, name: str, who: str) -> Secret:
        """UsageError that says what to set, and where."""
        found = self.get(name)
        if found is None:
            where = f"{self._file} has no such line either" if self._file else "or in a 0600 file named by search.keys"
            raise UsageError(f"{who} needs an API key: set {name} in the environment ({where})")
        return found


def private_lines(path: Path, setting: str) -> list[str]:
    """The lines of a file that only its owner can read. UsageError, which names the `setting`, for any other."""
    try:
        with path.open(encoding="utf-8") as f:
            mode = stat.S_IMODE(os.fstat(f.fileno()).st_mode)
            if mode & 0o077:
                raise UsageError(f"{setting}: {path} can be read by others (mode {mode:04o}): chmod 600 {path}")
            return f.read().splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{setting}: {path} cannot be read ({type(e).__name__})") from None


def _read(path: Path) -> dict[str, str]:
    out: dict[str, str] = {}
    for n, line in enumerate(private_lines(path, "search.keys"), 1):
        text = line.strip().removeprefix("export ")
        if not text or text.startswith("#"):
            continue
        name, eq, value = text.partition("=")
        if not eq or not name.strip():
            raise UsageError(f"search.keys: {path}:{n} is not NAME=value")  # never the line itself
        out[name.strip()] = value.strip().strip("'\"")
    return out
