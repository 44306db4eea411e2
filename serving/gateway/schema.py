"""The bodies that the gateway accepts: OpenAI's chat schema, as far as it can be honoured, and `search`.

Strict: unknown keys and wrong types are errors. A parameter that cannot be honoured is in here with the one value that asks for
nothing, so that clients which always send it get through.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_ID_CHARS = 512

Text = Annotated[str, Field(max_length=20_000_000)]
Label = Annotated[str, Field(max_length=MAX_ID_CHARS)]
Nothing = Annotated[list[Any], Field(max_length=0)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Body):
    type: Literal["text"]
    text: Text


class ImageUrl(Body):
    url: Text = Field(description="a data: URI (base64), or an http(s) URL that the gateway fetches")
    detail: Literal["auto", "low", "high"] | None = Field(default=None, description="accepted, and of no effect")


class ImagePart(Body):
    type: Literal["image_url"]
    image_url: ImageUrl


class SystemMessage(Body):
    role: Literal["system", "developer"]
    content: Text | list[TextPart]
    name: Label | None = None


class UserMessage(Body):
    role: Literal["user"]
    content: Text | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
    name: Label | None = None


class AssistantMessage(Body):
    """An earlier answer. What else came with it may be sent back, and is not read."""

    role: Literal["assistant"]
    content: Text | list[TextPart]
    name: Label | None = None
    reasoning_content: Text | None = None
    annotations: list[Any] | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ResponseFormat(Body):
    type: Literal["text"]


class SearchOptions(Body):
    """Not OpenAI's (`extra_body={"search": {...}}`). What is left out is as the gateway is configured, whose limits hold."""

    tools: Annotated[list[Label], Field(max_length=32)] | None = Field(
        default=None, description="which tools the model may call: image, text, and those configured by name; [] for none"
    )
    max_searches: Annotated[int, Field(ge=0, le=1000)] | None = Field(default=None, description="of all kinds together")
    deadline_s: Annotated[float, Field(gt=0, le=86400)] | None = Field(default=None, description="seconds for the whole answer")
    server: Label | None = Field(default=None, description="the name of a configured search server")
    require: bool | None = Field(default=None, description="the first turn is a search, whatever the model would do")
    trace: bool | None = Field(default=None, description="send the trajectory: token ids, loss mask, log-probs, turns")


class ChatRequest(Body):
    messages: Annotated[list[Message], Field(min_length=1)]
    model: Label
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = Field(default=None, description="sampled tokens a turn")
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = Field(default=None, description="as max_tokens")
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    search: SearchOptions | None = None

    # Of no effect here, and harmless.
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    service_tier: Literal["auto", "default"] | None = None
    parallel_tool_calls: bool | None = None
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], Label], Field(max_length=16)] | None = None

    # Only these values.
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    top_p: Annotated[float, Field(ge=1, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    stop: Nothing | None = None
    store: Literal[False] | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Nothing | None = None
    function_call: Literal["none", "auto"] | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    audio: None = None
    prediction: None = None
    reasoning_effort: None = None
    verbosity: None = None
    web_search_options: None = None
