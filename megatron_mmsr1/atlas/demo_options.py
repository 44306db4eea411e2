"""The knobs of the cold start: `sft.options` of a config whose `sft.source` is atlas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megatron_mmsr1.atlas.spec import KINDS, AtlasSpec
from megatron_mmsr1.errors import UsageError


class DemoOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    examples: int = Field(default=50_000, gt=0, description="length of the schedule; the iterator ends there")
    spec: AtlasSpec = Field(default=AtlasSpec(), description="known entities, picture size and views are its")
    prompts: str = "atlas"
    mix: dict[str, float] = Field(default_factory=lambda: dict.fromkeys(KINDS, 0.2))
    copy_share: float = Field(default=0.6, ge=0, le=1, description="share of pure copying at the start")
    copy_until: float = Field(default=0.3, ge=0, le=1, description="part of the schedule that it lasts")
    copy_later: float = Field(default=0.05, ge=0, le=1, description="share of pure copying after that")
    picture_share: float = Field(default=0.15, ge=0, le=1, description="share of dense picture rows among the rest")
    facts_share: float = Field(default=0.10, ge=0, le=1, description="share of dense fact rows among the rest")
    first: tuple[float, float, float, float] = Field(
        default=(0.4, 0.2, 0.2, 0.2), description="random first action: answer, image search, text search, crop"
    )
    tilt: float = Field(default=0.35, ge=0, le=1, description="share of demonstrations with the right tools, in the last part")
    tilt_from: float = Field(default=0.75, ge=0, le=1, description="where the last part begins; before it the tools are random")
    failures: float = Field(default=0.03, ge=0, le=1, description="share of searches that fail or find nothing")
    long_summaries: float = Field(default=0.25, ge=0, le=1, description="share of text results with two sentences")
    answer_weight: float = Field(default=3.0, gt=0, description="loss weight of an answer that was seen or known")
    pictures: int = Field(default=2048, gt=1, description="emblems in the pool that pictures are drawn from")


def parse_options(raw: Mapping[str, Any]) -> DemoOptions:
    """Raises UsageError that names each wrong option and lists the known ones."""
    return parse_as(DemoOptions, raw)


def parse_as[Options: BaseModel](kind: type[Options], raw: Mapping[str, Any]) -> Options:
    """As `parse_options`, for the options of another world."""
    try:
        return kind.model_validate(dict(raw))
    except ValidationError as e:
        lines = [f"  sft.options.{'.'.join(map(str, err['loc']))}: {err['msg']}" for err in e.errors()]
        raise UsageError("\n".join([*lines, f"  known options: {', '.join(kind.model_fields)}"])) from None
