"""A section of the config whose keys belong to the part that it names: `reward: {name: mmsearch, search_penalty: 0.2}`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.untyped import is_dict

if TYPE_CHECKING:
    from megatron_mmsr1.config.section import Section
    from megatron_mmsr1.plugins.registry import Registry


@dataclass(frozen=True)
class PartSettings:
    """Marks a field, as in `reward: Annotated[SerializeAsAny[Section], PartSettings("megatron_mmsr1.reward", "mmsearch")]`.

    The field takes a mapping with `name` (default: `default`) and the keys of that part's own `Settings`, which it becomes an
    instance of; or the name alone. `home` is the module that holds the seam's registry as `REGISTRY`; it is imported when a
    config is read. Without a `default` the field may be left out, and is None then.
    """

    home: str
    default: str | None

    def settings_for(self, raw: Any) -> type[Section]:
        """The Settings of the part that `raw` names. Raises UsageError as `Registry.get` does."""
        raw = {"name": raw} if isinstance(raw, str) else raw
        name = raw.get("name", self.default) if is_dict(raw) else self.default
        part = importlib.import_module(self.home).REGISTRY.get(str(name))
        return part.Settings

    def make(self, raw: Any = None) -> Any:
        """The settings from plain data; None gives the default part with its defaults, or None where there is no default."""
        from megatron_mmsr1.config.section import Section

        if isinstance(raw, Section) or (raw is None and self.default is None):
            return raw
        raw = {} if raw is None else {"name": raw} if isinstance(raw, str) else raw
        return self.settings_for(raw).model_validate({"name": self.default} | raw if isinstance(raw, dict) else raw)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(raw: Any) -> Any:
            try:
                return self.make(raw)
            except UsageError as e:
                raise ValueError(str(e)) from e

        def plain(settings: Any) -> Any:
            return None if settings is None else settings.model_dump(mode="json", serialize_as_any=True)

        return core_schema.no_info_plain_validator_function(
            validate, serialization=core_schema.plain_serializer_function_ser_schema(plain)
        )


def named_settings(registry: Registry[Any], name: str, options: Mapping[str, Any]) -> Any:
    """The `Settings` of a part whose settings hold its name. Raises UsageError for an unknown name or setting, or a value that
    does not fit."""
    settings = registry.get(name).Settings
    try:
        return settings.model_validate({"name": name, **options})
    except ValidationError as e:
        known = ", ".join(k for k in settings.model_fields if k != "name")
        said = "; ".join(f"{'.'.join(map(str, err['loc']))}: {err['msg']}" for err in e.errors())
        raise UsageError(f"{registry.kind} {name}: {said}; its settings are {known or 'none'}") from None


def options_for(part: Any, options: Mapping[str, Any], key: str) -> Any:
    """A part's `Settings` from options that a person or a caller gave. Raises UsageError that names `key`, the option and, for
    a misspelt one, what was meant."""
    try:
        return part.Settings.model_validate(dict(options))
    except ValidationError as e:
        raise UsageError("; ".join(_explained(err, part.Settings, key) for err in e.errors())) from None


def _explained(err: Any, settings: type[Section], key: str) -> str:
    where = ".".join([key, *map(str, err["loc"])])
    if err["type"] != "extra_forbidden":
        return f"{where}: {err['msg']} (got {err.get('input')!r})"
    known = list(settings.model_fields)
    close = difflib.get_close_matches(str(err["loc"][-1]), known, n=1)
    return f"unknown key {where}: " + (f"did you mean {close[0]}?" if close else f"known keys here: {', '.join(known)}")
