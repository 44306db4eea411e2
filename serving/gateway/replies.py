"""What the gateway answers, for the OpenAPI document and for the tests that hold every answer against it.

Answers are put together as plain dicts (`completion.py`): a stream has thousands of them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Reply(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorBody(Reply):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(Reply):
    error: ErrorBody


class PromptTokensDetails(Reply):
    cached_tokens: int


class Usage(Reply):
    """Over all turns of the answer; `searches` were made for it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    searches: int


class UrlCitation(Reply):
    """`start_index` and `end_index` are characters of the answer."""

    url: str
    title: str
    start_index: int
    end_index: int


class Annotation(Reply):
    type: Literal["url_citation"]
    url_citation: UrlCitation


class SearchResult(Reply):
    """Something that was found. `n` counts from 1 over all searches of the answer; `supports`: the answer occurs in it. `url`
    is empty for what is no http(s) URL."""

    n: int
    kind: Literal["image", "text"]
    title: str
    url: str
    snippet: str
    supports: bool


class StepResult(Reply):
    n: int
    title: str
    url: str
    snippet: str


class SearchStep(Reply):
    """A search, when it begins and when it has ended; what follows `round` comes with the end."""

    type: Literal["started", "ended"]
    kind: Literal["image", "text"]
    query: str
    round: int
    status: str | None = None
    seconds: float | None = None
    cached: bool | None = None
    degraded: bool | None = None
    results: list[StepResult] | None = None


class TracedTurn(Reply):
    role: Literal["prompt", "assistant", "tool"]
    start: int
    end: int
    text: str
    action: str
    seconds: float


class TracedImage(Reply):
    sha256: str
    grid_thw: tuple[int, int, int]


class Trace(Reply):
    """The trajectory: per-token lists of one length, and turns that tile them."""

    status: str
    token_ids: list[int]
    loss_mask: list[int]
    logprobs: list[float]
    weight_versions: list[int]
    images: list[TracedImage]
    turns: list[TracedTurn]


class Message(Reply):
    role: Literal["assistant"]
    content: str
    reasoning_content: str
    annotations: list[Annotation]
    refusal: None


class Choice(Reply):
    index: int
    message: Message
    finish_reason: Literal["stop", "length"]
    logprobs: None


class Sourced(Reply):
    """What comes with an answer: URLs that support it, everything that was found, the trajectory where it was asked for."""

    citations: list[str]
    search_results: list[SearchResult]
    trace: Trace | None = None


class ChatCompletion(Sourced):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    search_steps: list[SearchStep]


class Delta(Reply):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    annotations: list[Annotation] | None = None


class ChunkChoice(Reply):
    index: int
    delta: Delta
    finish_reason: Literal["stop", "length"] | None
    logprobs: None = None


class ChatCompletionChunk(Reply):
    """An event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    search_step: SearchStep | None = None
    citations: list[str] | None = None
    search_results: list[SearchResult] | None = None
    trace: Trace | None = None


class Model(Reply):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Reply):
    object: Literal["list"]
    data: list[Model]


class Engines(Reply):
    up: int
    total: int


class Health(Reply):
    """`degraded`: an engine answers, a search server does not. `unavailable` comes with status 503 and an `error`."""

    status: Literal["ok", "degraded", "unavailable"]
    engines: Engines
    searches: dict[str, str]
    error: dict[str, Any] | None = None
