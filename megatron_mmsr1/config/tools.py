"""The section `tools`: its keys name tools, its values are those tools' own settings."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.untyped import is_mapping


class _ByName:
    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            _validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda tools: {name: s.model_dump(mode="json") for name, s in tools.items()}
            ),
        )


def _validate(raw: Any) -> dict[str, Section]:
    if not is_mapping(raw):
        raise ValueError("must map names of tools to their settings, as in tools: {crop: {limit: 1}}")
    return {str(name): _section(str(name), value) for name, value in raw.items()}


def _section(name: str, raw: Any) -> Section:
    if isinstance(raw, Section):
        return raw
    if raw is not None and not is_mapping(raw):
        raise ValueError(f"{name} must be a mapping of its settings, or empty (got {raw!r})")
    try:
        # By name: the tools' room imports this one.
        return importlib.import_module("megatron_mmsr1.tools").settings_for(name, raw or {})
    except UsageError as e:
        raise ValueError(str(e)) from e


ToolsConfig = Annotated[dict[str, Section], _ByName()]
