"""A Hugging Face checkpoint directory as its JSON files tell it."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.models.base import Family, PictureRule

PROCESSORS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class ModelFiles:
    """`config` is config.json; `family` the one that answers to its architecture."""

    path: Path
    config: dict[str, Any]
    family: Family

    @property
    def pictures(self) -> PictureRule:
        return self.family.picture_rule(self.config)

    def check_freeze(self, groups: Collection[str]) -> None:
        """UsageError for a group that the family does not have."""
        unknown = sorted(set(groups) - set(self.family.freeze_groups))
        if unknown:
            known = ", ".join(self.family.freeze_groups)
            raise UsageError(f"model.freeze: {self.family.name} has no {', '.join(unknown)}; there are {known}")

    def check_processor(self) -> None:
        """UsageError if the checkpoint's image processor, which the engine uses, makes other numbers of a picture than the
        family's rule does: engine and trainer would see different pictures. What its file leaves out is taken to agree."""
        file, said = self.processor()
        rule = self.pictures
        ours = {
            "patch_size": rule.patch,
            "merge_size": rule.merge,
            "temporal_patch_size": rule.temporal,
            "image_mean": rule.mean,
            "image_std": rule.deviation,
        }
        for key, wanted in ours.items():
            if key in said and not _same(said[key], wanted):
                raise UsageError(
                    f"model.path: {file} has {key} {said[key]}, but the model family {self.family.name} reads pictures with "
                    f"{wanted}: copy the checkpoint's own file, or name a family of that rule in model.family"
                )

    def processor(self) -> tuple[Path, dict[str, Any]]:
        """The image processor's file and what it says. UsageError if there is none, RunError if it is damaged."""
        files = [f for n in PROCESSORS if (f := self.path / n).is_file()]
        if not files:
            raise UsageError(f"model.path: {self.path} has no {' or '.join(PROCESSORS)}: copy the checkpoint whole")
        try:
            said = json.loads(files[0].read_text())
        except ValueError as e:
            raise RunError(f"model.path: {files[0]} is not valid JSON ({e}): copy the checkpoint again") from None
        return files[0], said.get("image_processor", said)


def _same(said: Any, wanted: Any) -> bool:
    one, two = ([v] if isinstance(v, int | float) else list(v) for v in (said, wanted))
    return len(one) == len(two) and all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(one, two, strict=True))


def read_config(path: Path, key: str = "model.path") -> dict[str, Any]:
    """A Hugging Face checkpoint's config.json; `key` is the setting that named the path. UsageError if there is none."""
    file = path / "config.json"
    if not file.is_file():
        raise UsageError(f"{key}: no Hugging Face checkpoint at {path}: {file} is missing")
    try:
        return json.loads(file.read_text())
    except ValueError as e:
        raise RunError(f"{file} is not valid JSON ({e}): download or export the checkpoint again") from e
