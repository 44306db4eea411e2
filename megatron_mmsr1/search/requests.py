"""The bodies that the search server accepts. Strict: unknown keys, wrong types and sizes past the caps are errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

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
