"""What a world is made of: every knob of `mmsr1 atlas build`. Search failures (missing results, errors, latency) are the
search server's and live in `config.SearchConfig`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from megatron_mmsr1.errors import UsageError

KINDS = ("known", "picture", "image", "text", "both", "crop")
SEARCH_FREE = ("known", "picture")
CANVAS_MULTIPLE = 80  # pixels: sizes of which `canvas` makes whole ones of emblem, plate and box


class Views(BaseModel):
    """How far one drawing of an emblem may differ from another. 0 switches a change off."""

    model_config = ConfigDict(extra="forbid")

    rotation: float = Field(default=6.0, ge=0, le=15, description="degrees to either side; more would push the dots out")
    crop: float = Field(default=0.06, ge=0, le=0.15, description="share of the picture that zoom and shift may cut off")
    noise: float = Field(default=0.02, ge=0, le=0.5, description="share of the pixels that are speckled")


class AtlasSpec(BaseModel):
    """A world. Two equal specs build byte-identical files."""

    model_config = ConfigDict(extra="forbid")

    seed: int = 0
    entities: int = Field(default=300, ge=4, description="unknown entities, train and held-out together")
    heldout_share: float = Field(default=1 / 3, gt=0, lt=1, description="share of them that only held-out questions are on")
    known: int = Field(default=16, ge=1, le=64, description="the same in every world, taught by the cold start")
    train_questions: int = Field(default=4000, gt=0)
    heldout_questions: int = Field(default=400, gt=0)
    mix: dict[str, float] = Field(
        default_factory=lambda: dict.fromkeys(KINDS, 0.2), description="share of each kind of question"
    )
    image_size: int = Field(default=56, ge=56, description="pixels a side, a multiple of 28: 56 is four image tokens")
    canvas_size: int = Field(default=560, ge=560, description="pixels a side of the picture of a crop question")
    views: Views = Views()
    question_views: int = Field(default=4, gt=0, description="different views of an entity that its questions show")
    noise_pages: int = Field(default=100, ge=0, description="pages on nothing that is asked")
    near_duplicate_pictures: int = Field(default=0, ge=0, description="entities whose emblem is another's but for two dots")
    homonyms: int = Field(default=0, ge=0, description="entities that bear another's name; never asked about by name")
    stale: int = Field(default=0, ge=0, description="entities with a second page that tells what was true long ago")
    contradictory: int = Field(default=0, ge=0, description="entities with a second page that tells something else")
    injected: int = Field(default=0, ge=0, description="entities with a second page that gives orders and forges tokens")

    @model_validator(mode="after")
    def _consistent(self) -> AtlasSpec:
        if self.image_size % 28:
            raise ValueError(f"image_size={self.image_size} is not a multiple of 28 (patch 14 x merge 2)")
        if self.canvas_size % CANVAS_MULTIPLE:
            raise ValueError(f"canvas_size={self.canvas_size} is not a multiple of {CANVAS_MULTIPLE}")
        if set(self.mix) != set(KINDS) or min(self.mix.values()) < 0 or sum(self.mix.values()) <= 0:
            raise ValueError(f"mix must give a share >= 0 to each of {', '.join(KINDS)}, and one above 0")
        for knob in ("near_duplicate_pictures", "homonyms", "stale", "contradictory", "injected"):
            if getattr(self, knob) > self.entities // 2:
                raise ValueError(f"{knob}={getattr(self, knob)} is more than half of entities={self.entities}")
        if not 1 <= self.heldout_entities < self.entities - 1:
            raise ValueError(f"heldout_share={self.heldout_share} leaves one split of {self.entities} entities empty")
        return self

    @property
    def heldout_entities(self) -> int:
        return round(self.entities * self.heldout_share)


def load_spec(path: str | Path | None = None, **knobs: Any) -> AtlasSpec:
    """A spec from a YAML file (None: the defaults), with `knobs` on top. Raises UsageError that names the file and the key."""
    where, raw = "atlas spec", {}
    if path is not None:
        where = str(path)
        try:
            raw = yaml.safe_load(Path(path).read_text()) or {}
        except (OSError, yaml.YAMLError) as e:
            raise UsageError(f"{path}: cannot be read as YAML: {e}") from e
        if not isinstance(raw, dict):
            raise UsageError(f"{path}: must be a mapping of knobs")
    return parse_knobs(AtlasSpec, {**raw, **knobs}, where)


def require_same(out: Path, held: object, spec: BaseModel) -> None:
    """UsageError where the world in `out` has another spec, `held` as JSON has it."""
    if held != spec.model_dump(mode="json"):
        raise UsageError(f"{out} holds a world of another spec: choose another directory or remove that one")


def parse_knobs[Spec: BaseModel](kind: type[Spec], knobs: dict[str, Any], where: str) -> Spec:
    """Raises UsageError that names each wrong knob and lists the known ones."""
    try:
        return kind.model_validate(knobs)
    except ValidationError as e:
        lines = [f"  {'.'.join(map(str, err['loc'])) or 'spec'}: {err['msg']} (got {err.get('input')!r})" for err in e.errors()]
        known = ", ".join(kind.model_fields)
        raise UsageError(f"{where}:\n" + "\n".join(lines) + f"\n  known knobs: {known}") from None
