"""Write docs/configuration.md from the typed settings: `python scripts/config_docs.py` (a test fails when it is stale)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from megatron_mmsr1.config import RunConfig

TARGET = Path(__file__).parent.parent / "docs" / "configuration.md"
HEAD = """# Configuration

Made from the code by `python scripts/config_docs.py`; do not edit. A run is one YAML file; `section.key=value` on the command
line overrides it. Unknown keys are errors.
"""


def render() -> str:
    """The whole page as Markdown."""
    parts = [HEAD, "## Top level\n", _table(RunConfig, sections=False)]
    for name, model in _sections(RunConfig):
        parts += _chapter(name, model)
    return "\n".join(parts) + "\n"


def _sections(model: type[BaseModel], above: str = "") -> list[tuple[str, type[BaseModel]]]:
    """The sections below `model`, each followed by its own, with their dotted names."""
    out: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            out += [(above + name, field.annotation), *_sections(field.annotation, f"{above}{name}.")]
    return out


def _chapter(name: str, model: type[BaseModel]) -> list[str]:
    own = vars(model).get("__doc__") or ""
    first = " ".join(own.strip().split("\n\n")[0].split())
    return [f"\n{'#' * (2 + name.count('.'))} {name}\n", *([first + "\n"] if first else []), _table(model, sections=False)]


def _table(model: type[BaseModel], *, sections: bool = True) -> str:
    rows = ["| key | type | default | what it does |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        if not sections and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            continue
        rows.append(f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {field.description or ''} |")
    return "\n".join(rows)


def _type(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    return f"`{text.replace('typing.', '').replace('|', 'or')}`"


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.default_factory() if field.default is PydanticUndefined else field.default
    return f"`{value!r}`"


if __name__ == "__main__":
    TARGET.write_text(render())
    print(f"wrote {TARGET}")
