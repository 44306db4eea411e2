"""Model families: a seam. One file a family (`models/NAME/__init__.py`), found by the architecture in config.json or by
`model.family`. docs/extend/model_family.md tells how to add one."""

from __future__ import annotations

from pathlib import Path

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.models._files import ModelFiles, read_config
from megatron_mmsr1.models.base import Family, PictureRule, SpecialTokens
from megatron_mmsr1.plugins.registry import Registry, requires

__all__ = ["REGISTRY", "Family", "ModelFiles", "PictureRule", "SpecialTokens", "get", "of_checkpoint", "read_config"]

REGISTRY: Registry[Family] = Registry(
    "model_family",
    "megatron_mmsr1.models",
    "FAMILY",
    key="model.family",
    check=requires(
        methods=("picture_rule", "positions", "provider"),
        attributes=("name", "architectures", "trainer", "tokens", "pictures", "freeze_groups"),
        settings=False,
    ),
)


def get(name: str) -> Family:
    """The family of this name. Raises UsageError as `Registry.get` does."""
    return REGISTRY.get(name)


def of_checkpoint(path: str | Path, family: str | None = None, key: str = "model.path") -> ModelFiles:
    """The checkpoint at `path`, with the family that `family` names or, without one, that its architecture belongs to.

    Raises UsageError if there is no checkpoint, or if the family does not list its architecture.
    """
    path = Path(path)
    config = read_config(path, key)
    found = config.get("architectures") or ["none"]
    if family is not None:
        chosen = get(family)
        if not set(found) <= set(chosen.architectures):
            raise UsageError(
                f"{key}: {path} is a {', '.join(found)}, but model.family={family} is for {', '.join(chosen.architectures)}"
            )
        return ModelFiles(path, config, chosen)
    families = [get(name) for name in REGISTRY.names()]
    fitting = [f for f in families if len(found) == 1 and found[0] in f.architectures]
    if len(fitting) > 1:
        raise UsageError(f"{key}: {path} is a {found[0]}; set model.family to one of {', '.join(f.name for f in fitting)}")
    if fitting:
        return ModelFiles(path, config, fitting[0])
    known = {a for f in families for a in f.architectures}
    raise UsageError(
        f"{key}: {path} is a {', '.join(found)}; this trainer supports {', '.join(sorted(known))}, and another through "
        "model.family (docs/extend/model_family.md)"
    )
