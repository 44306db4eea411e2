"""Write docs/configuration.md from the typed settings: `python scripts/config_docs.py`; `--check` fails when it is stale."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.plugins.settings import PartSettings

TARGET = Path(__file__).parent.parent / "docs" / "configuration.md"
HEAD = """# Configuration

Made from the code by `python scripts/config_docs.py`; do not edit. A run is one YAML file; `section.key=value` on the command
line overrides it. Unknown keys are errors.
"""


def render() -> str:
    """The whole page as Markdown."""
    parts = [HEAD, "## Top level\n", _table(RunConfig, sections=False), *_seams(RunConfig)]
    for name, model in _sections(RunConfig):
        parts += _chapter(name, model) + _seams(model, f"{name}.")
    return "\n".join(parts) + "\n"


def _sections(model: type[BaseModel], above: str = "") -> list[tuple[str, type[BaseModel]]]:
    """The sections below `model`, each followed by its own, with their dotted names."""
    out: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        below = _section(field.annotation) or _optional(field.annotation)
        if _part(field) is None and below is not None:
            out += [(above + name, below), *_sections(below, f"{above}{name}.")]
    return out


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _optional(annotation: Any) -> type[BaseModel] | None:
    """Of `Section | None`."""
    found = get_args(annotation)
    return _section(found[0]) if len(found) == 2 and found[1] is type(None) else None


def _seams(model: type[BaseModel], above: str = "") -> list[str]:
    """A chapter for each setting of `model` that names a part, with a table for each part that ships."""
    out: list[str] = []
    for key, field in model.model_fields.items():
        if (seam := _part(field)) is None:
            continue
        registry: Any = importlib.import_module(seam.home).REGISTRY
        level = "#" * (2 + above.count("."))
        default = f", {seam.default} if it is left out" if seam.default else ""
        out.append(
            f"\n{level} {above}{key}\n\n`name` says which {registry.kind}{default}; the other keys are that one's own.\n"
        )
        for name in registry.names():
            out.append(f"\n{level}# {above}{key}: {name}\n\n{_table(registry.get(name).Settings)}")
    return out


def _part(field: Any) -> PartSettings | None:
    return next((m for m in field.metadata if isinstance(m, PartSettings)), None)


def _chapter(name: str, model: type[BaseModel]) -> list[str]:
    own = vars(model).get("__doc__") or ""
    first = " ".join(own.strip().split("\n\n")[0].split())
    return [f"\n{'#' * (2 + name.count('.'))} {name}\n", *([first + "\n"] if first else []), _table(model, sections=False)]


def _table(model: type[BaseModel], *, sections: bool = True) -> str:
    rows = ["| key | type | default | what it does |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        if not sections and _part(field) is None and _section(field.annotation) is not None:
            continue
        kind, default = (
            (_type(field.annotation), _default(field)) if _part(field) is None else ("`name` and settings", "see below")
        )
        rows.append(f"| `{name}` | {kind} | {default} | {field.description or ''} |")
    return "\n".join(rows)


def _type(annotation: Any) -> str:
    if _optional(annotation) is not None:
        return "a section, below"
    text = annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    return f"`{text.replace('typing.', '').replace('|', 'or')}`"


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.default_factory() if field.default is PydanticUndefined else field.default
    return f"`{value!r}`"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(TARGET.read_text() != render() and f"{TARGET} is stale: run python scripts/config_docs.py")
    TARGET.write_text(render())
    print(f"wrote {TARGET}")
