"""What a model may call: a file a tool. `get(name)` makes one; `configured` makes those of a run.

The searches are always there, within `protocol.image_searches` and `protocol.text_searches`. The config's `tools` adds others:
its keys are names, its values their settings (`tools: {crop: {limit: 1}}`), and `use` names a person's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.plugins.registry import Registry, requires
from megatron_mmsr1.plugins.settings import options_for
from megatron_mmsr1.tools.base import (
    ArgumentsError,
    Picture,
    Result,
    Scene,
    Search,
    Tool,
    ToolSettings,
)

__all__ = [
    "ALWAYS",
    "REGISTRY",
    "ArgumentsError",
    "Picture",
    "Result",
    "Scene",
    "Search",
    "Tool",
    "ToolSettings",
    "configured",
    "get",
    "settings_for",
    "shipped",
]

ALWAYS = ("image_search", "text_search")


def _check(name: str, part: Any) -> list[str]:
    if not (isinstance(part, type) and issubclass(part, Tool)):
        return ["it must be a subclass of megatron_mmsr1.tools.Tool"]
    broken = requires(async_methods=("run",))(name, part)
    settings, arguments = (getattr(part, a, None) for a in ("Settings", "Arguments"))
    if not (isinstance(settings, type) and issubclass(settings, ToolSettings)):
        broken.append("its Settings must be a subclass of megatron_mmsr1.tools.ToolSettings")
    if not (isinstance(arguments, type) and issubclass(arguments, Section)):
        broken.append("its Arguments must be a subclass of megatron_mmsr1.config.section.Section")
    if not part.description:
        broken.append("it has no description, which is what the model is told about it")
    return broken if broken or not inspect.isabstract(part) else ["it does not define run"]


REGISTRY: Registry[type[Tool]] = Registry("tool", __name__, "TOOL", key="tools", check=_check)


def get(name: str, **options: Any) -> Tool:
    """The tool of this name (or `package.module:Object`, `path/to/file.py:Object`) with these settings.

    Raises UsageError for an unknown name or option, and for a person's own that breaks the contract.
    """
    part = REGISTRY.get(name)
    return part(options_for(part, options, f"tools.{name}"), "" if ":" in name else name)


def settings_for(name: str, raw: Mapping[str, Any]) -> ToolSettings:
    """The settings of the config's section `tools.NAME`. Raises UsageError as `get`."""
    part = REGISTRY.get(str(raw.get("use") or name))
    return options_for(part, raw, f"tools.{name}")


def configured(sections: Mapping[str, Section]) -> dict[str, Tool]:
    """The tools of a run by name: the searches first, then those of the config's `tools`, in its order."""
    tools = {name: get(name) for name in ALWAYS}
    for name, settings in sections.items():
        assert isinstance(settings, ToolSettings)
        tools[name] = REGISTRY.get(settings.use or name)(settings, name)
    return tools


@cache
def shipped() -> tuple[Tool, ...]:
    """One of each that ships or is installed, with default settings."""
    return tuple(get(name) for name in REGISTRY.names())
