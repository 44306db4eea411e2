"""What is asked of the answerer, and what it tells while it works: the words that gateway and app share."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_mmsr1.trajectory import Status, ToolStatus, Trajectory
from serving.chat import Chat


class AskError(ValueError):
    """The question cannot be answered as it was asked: the message says why. `code`: "context_length_exceeded" |
    "invalid_request"."""

    def __init__(self, message: str, code: str = "invalid_request"):
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Ask:
    """A question with what the caller wants of it. None: the configured limit; a request may only lower one.

    `require_search`: the first turn is a search, whatever the model would have done. `server`: the NAME of a configured search
    server. `seed` makes the sampling repeatable where the engine can: it is `Seeds.run` of a rollout's first
    prompt of step 0. `tools`: the kinds of the tools that may be called; None: all that there are. `max_searches` counts the
    calls of all of them.
    """

    chat: Chat
    tools: tuple[str, ...] | None = None
    max_searches: int | None = None
    deadline_s: float | None = None
    server: str = ""
    require_search: bool = False
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int = 0


@dataclass(slots=True, frozen=True)
class Source:
    """Something that was found. `n` counts from 1 over all searches of the answer; `supports`: the answer occurs in it."""

    n: int
    kind: str  # the kind of the tool that found it: "image", "text"
    title: str
    url: str
    text: str = ""
    image: bytes | None = None  # PNG
    supports: bool = False


@dataclass(slots=True, frozen=True)
class Delta:
    """Text as it is sampled, never empty. `kind`: "reasoning" or "answer"."""

    kind: str
    text: str
    round: int


@dataclass(slots=True, frozen=True)
class SearchStarted:
    kind: str
    query: str
    round: int


@dataclass(slots=True, frozen=True)
class SearchEnded:
    kind: str
    query: str
    round: int
    status: ToolStatus
    seconds: float
    cached: bool
    degraded: bool
    backend: str
    detail: str
    sources: tuple[Source, ...]


@dataclass(slots=True, frozen=True)
class Usage:
    """Over all turns: tokens that the engine read and sampled (`cached` of those read were in its prefix cache), searches
    made."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    searches: int = 0


@dataclass(slots=True, frozen=True)
class Answered:
    """The last event. `text` is what the answer's deltas say together.

    `error` is set where there is no whole answer: `status` is then ENGINE_ERROR (the engine failed), ABORTED (time ran out) or
    TOOL_ERROR. `forced`: the model would have searched on, or said nothing, and was made to answer.
    """

    text: str
    sources: tuple[Source, ...]
    usage: Usage
    seconds: float
    finish: str  # "stop" | "length"
    status: Status
    trajectory: Trajectory | None
    forced: bool = False
    error: str = ""


Step = Delta | SearchStarted | SearchEnded | Answered
