"""The typed replies of the search server, as a client holds them, and their form on the wire (JSON, pictures in base64)."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from megatron_mmsr1.protocol.results import ImageHit, TextHit
from megatron_mmsr1.trajectory import ToolStatus


class Reply(BaseModel):
    """What every reply says. `cached`: no backend was asked for it (the store, or a twin in flight, had it). `degraded`: part
    of what was asked for is missing, for want of time or of a working upstream."""

    model_config = ConfigDict(extra="forbid")

    status: ToolStatus
    seconds: float = 0.0
    cached: bool = False
    degraded: bool = False
    backend: str = ""
    detail: str = ""


def _hit_from_wire(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    image = value.get("image")
    if isinstance(image, str):
        try:
            image = base64.b64decode(image, validate=True)
        except binascii.Error as e:
            raise ValueError(f"a hit's image is not base64: {e}") from None
    return {**value, "image": image}


def hit_to_wire(hit: ImageHit) -> dict[str, Any]:
    image = None if hit.image is None else base64.b64encode(hit.image).decode()
    return {"title": hit.title, "image": image, "url": hit.url}


WireImageHit = Annotated[ImageHit, BeforeValidator(_hit_from_wire), PlainSerializer(hit_to_wire, when_used="json")]


class TextReply(Reply):
    hits: list[TextHit] = []


class ImageReply(Reply):
    """`hits[i].image` holds encoded bytes as the backend gave them; the rollout canonicalises them."""

    hits: list[WireImageHit] = []


class PageReply(Reply):
    url: str = ""
    title: str = ""
    text: str = ""


class SummaryReply(Reply):
    summary: str = ""
