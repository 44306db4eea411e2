"""What a change of each setting affects, read from the classification that the fields carry (`config.section`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from megatron_mmsr1.config.section import Affects, Section
from megatron_mmsr1.untyped import is_list, is_mapping, is_tuple

# What decides the numbers of a run: other values are another experiment.
RESULTS = (Affects.ROLLOUT, Affects.TRAINING)


def leaves(cfg: BaseModel) -> Iterator[tuple[str, Any, Affects | None]]:
    """(dotted key, plain value, what it affects) of every setting, parts' own included; None where nothing says it."""
    yield from _walk(cfg, cfg.model_dump(mode="json", serialize_as_any=True), "", None)


def differing(old: BaseModel, new: BaseModel, kinds: tuple[Affects, ...] = RESULTS) -> list[str]:
    """The keys, sorted, of these kinds in which two configs differ. An unclassified key counts as every kind."""
    one, two = _chosen(old, kinds), _chosen(new, kinds)
    return sorted(k for k in one.keys() | two.keys() if one.get(k) != two.get(k))


def fingerprint(cfg: BaseModel, kinds: tuple[Affects, ...] = RESULTS) -> str:
    """16 hex digits that differ as soon as a setting of these kinds does. `RESULTS` together with a step's number name its
    rollouts; with `(Affects.ROLLOUT,)` and a name for the weights, an evaluation."""
    return hashlib.sha256(json.dumps(_plain(_chosen(cfg, kinds)), sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Whole numbers as floats: a default of 30 for a float is read back from a kept config as 30.0."""
    if is_mapping(value):
        return {k: _plain(v) for k, v in value.items()}
    if is_list(value) or is_tuple(value):
        return [_plain(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def keys_of(model: type[Section], kind: Affects) -> list[str]:
    """The keys directly in a section, sections below it too, that are of this kind."""
    return [name for name, field in model.model_fields.items() if _of_field(field, model, None) is kind]


def _chosen(cfg: BaseModel, kinds: tuple[Affects, ...]) -> dict[str, Any]:
    return {key: value for key, value, what in leaves(cfg) if what is None or what in kinds}


def _walk(
    section: BaseModel, plain: Mapping[str, Any], above: str, inherited: Affects | None
) -> Iterator[tuple[str, Any, Affects | None]]:
    model = type(section)
    for name, field in model.model_fields.items():
        what = _of_field(field, model, inherited)
        yield from _value(getattr(section, name), plain[name], f"{above}{name}", what)


def _value(value: Any, plain: Any, key: str, what: Affects | None) -> Iterator[tuple[str, Any, Affects | None]]:
    if isinstance(value, BaseModel):
        yield from _walk(value, plain, f"{key}.", what)
    elif is_mapping(value) and value:  # native arguments, or named parts
        for k, v in value.items():
            yield from _value(v, plain[str(k)], f"{key}.{k}", what)
    else:
        yield key, plain, what


def _of_field(field: Any, model: type[BaseModel], inherited: Affects | None) -> Affects | None:
    own = next((m for m in field.metadata if isinstance(m, Affects)), None)
    if own is not None:
        return own
    below = field.annotation if isinstance(field.annotation, type) and issubclass(field.annotation, Section) else None
    return (below.AFFECTS if below else None) or getattr(model, "AFFECTS", None) or inherited
