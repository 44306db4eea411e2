"""Pydantic's errors for a person: the key, what is wrong with it, and for a misspelt one the key that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.untyped import is_dict


def explain_all(error: ValidationError, root: type[BaseModel], raw: Any = None) -> str:
    """Every mistake on a line of its own, indented. `root`: the model that was being read; `raw`: what it was read from."""
    return "\n".join(f"  {explain(err, root, raw)}" for err in error.errors())


def explain(err: Any, root: type[BaseModel], raw: Any = None) -> str:
    """One mistake in a line."""
    loc = tuple(err["loc"])
    key = ".".join(str(p) for p in loc)
    if err["type"] == "extra_forbidden":
        return f"unknown key {key}: {_meant(loc, root, raw)}"
    given, said = err.get("input"), err["msg"].removeprefix("Value error, ")
    where = f"{key}: " if key and not said.startswith(key) else ""
    if err["type"] == "list_type" and isinstance(given, str):
        return f"{where}a list is wanted: write {key}=[{given}]"
    # A whole section beside a sentence on one of its keys says nothing.
    got = "" if err["type"] == "missing" or isinstance(given, dict | BaseModel) else f" (got {given!r})"
    return f"{where}{said}{got if said == err['msg'] else ''}"


def _meant(loc: tuple[Any, ...], root: type[BaseModel], raw: Any) -> str:
    known = list(_section(loc[:-1], root, raw))
    wrong = str(loc[-1])
    close = difflib.get_close_matches(wrong, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    elsewhere = [path for path, name in _all_keys(root) if name == wrong]
    if len(elsewhere) == 1:
        return f"did you mean {elsewhere[0]}?"
    return f"known keys here: {', '.join(known)}"


def _section(path: tuple[Any, ...], model: type[BaseModel], raw: Any) -> dict[str, FieldInfo]:
    """The fields of the section at `path`; none where it is no section."""
    fields = dict(model.model_fields)
    rest = list(path)
    while rest:
        name = str(rest.pop(0))
        raw = raw.get(name) if is_dict(raw) else None
        if name not in fields:
            return {}
        field = fields[name]
        part = next((m for m in field.metadata if hasattr(m, "settings_for")), None)
        if part is not None:
            below = _named(part, raw)
        else:
            below = next(_sections_in(field.annotation), None)
            if below is not None and _is_mapping(field.annotation) and rest:  # NAME: {settings}
                key = rest.pop(0)
                raw = raw.get(key) if is_dict(raw) else None
        if below is None:
            return {}
        fields = dict(below.model_fields)
    return fields


def _named(part: Any, raw: Any) -> type[BaseModel] | None:
    try:
        return part.settings_for(raw)
    except UsageError:
        return None  # the name itself is wrong, which has an error of its own


def _is_mapping(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is dict


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that an annotation names: `Section`, `Section | None`, `dict[str, Section]`."""
    if isinstance(annotation, type) and not get_args(annotation):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for inner in get_args(annotation):
        yield from _sections_in(inner)


def _all_keys(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        yield f"{above}{name}", name
        for below in _sections_in(field.annotation):
            yield from _all_keys(below, f"{above}{name}.")
