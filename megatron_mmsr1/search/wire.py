"""The typed replies of the search server, as a client holds them, and their form on the wire (JSON, pictures in base64)."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, StringConstraints

from megatron_mmsr1.protocol.results import ImageHit, TextHit
from megatron_mmsr1.trajectory import ToolStatus
from megatron_mmsr1.untyped import is_dict


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
    if not is_dict(value):
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


# The bodies that the search server accepts. Strict: unknown keys, wrong types and sizes past the caps are errors.
MAX_K = 50
MAX_QUERY_CHARS = 4_096
MAX_TEXT_CHARS = 1_000_000
MAX_IMAGE_BYTES = 16 * 2**20
MAX_BODY_BYTES = MAX_IMAGE_BYTES * 4 // 3 + 4_096  # an image in base64, and what stands around it
MAX_QUERIES = 512
MAX_BATCH = 1_024
MAX_BATCH_BYTES = 32 * 2**20

Query = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_QUERY_CHARS)]
K = Annotated[int, Field(ge=1, le=MAX_K)]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextRequest(Request):
    query: Query
    k: K = 5


class ImageRequest(Request):
    image_base64: str
    k: K = 5


class ReadRequest(Request):
    url: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_QUERY_CHARS)]


class SummariseRequest(Request):
    query: Query
    text: Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS)]


class RetrieveRequest(Request):
    """Search-R1's contract; without `topk` three documents a query."""

    queries: Annotated[list[Query], Field(min_length=1, max_length=MAX_QUERIES)]
    topk: K | None = None
    return_scores: bool = False


class BatchedCall(Request):
    """`body` is checked where the call is answered, so that a bad one costs only itself."""

    op: Literal["text", "image", "read", "summarise"]
    call: Annotated[str, StringConstraints(max_length=512)] = ""
    body: dict[str, Any]


class BatchRequest(Request):
    calls: Annotated[list[BatchedCall], Field(min_length=1, max_length=MAX_BATCH)]
