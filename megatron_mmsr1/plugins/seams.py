"""Every seam there is: the packages of ours that hold a `REGISTRY`. No list names them."""

from __future__ import annotations

import difflib
import importlib
import re
from pathlib import Path
from typing import Any, TypeGuard

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.plugins.registry import Registry

_ROOT = Path(__file__).parent.parent
_HOLDS = re.compile(r"^(REGISTRY\b|from .* import .*\bREGISTRY\b)", re.MULTILINE)


def seams() -> list[Registry[Any]]:
    """The registries, sorted by kind. Only packages whose `__init__` names a REGISTRY are imported."""
    found: dict[str, Registry[Any]] = {}
    for init in _ROOT.rglob("__init__.py"):
        if _HOLDS.search(init.read_text(encoding="utf-8")):
            name = ".".join([_ROOT.name, *init.parent.relative_to(_ROOT).parts])
            registry = getattr(importlib.import_module(name), "REGISTRY", None)
            if _is_registry(registry):
                found.setdefault(registry.kind, registry)
    return [found[kind] for kind in sorted(found)]


def _is_registry(value: Any) -> TypeGuard[Registry[Any]]:
    return isinstance(value, Registry)


def seam(kind: str) -> Registry[Any]:
    """The registry of this kind. UsageError with the kind that was meant, or all of them."""
    known = {r.kind: r for r in seams()}
    if kind not in known:
        close = difflib.get_close_matches(kind, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        raise UsageError(f"{kind}: no such kind of part; {hint}")
    return known[kind]
