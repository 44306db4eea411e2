"""One sampled turn, whatever engine sampled it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from megatron_mmsr1.errors import RunError

OnTokens = Callable[[list[int]], None]  # told the ids that are new


class EngineError(RunError):
    """An engine failed a request for good. `url` names it; `retryable` tells whether another try could have helped, `alive`
    that the engine answered, and is none to be left alone."""

    def __init__(self, message: str, *, url: str = "", retryable: bool = True, alive: bool = False) -> None:
        super().__init__(message)
        self.url = url
        self.retryable = retryable
        self.alive = alive


@dataclass(slots=True)
class Generation:
    """One sampled turn. `logprobs` natural, one a token. `finish`: "stop" (the stop token is the last id) or "length"."""

    token_ids: list[int]
    logprobs: list[float]
    weight_version: int
    finish: str
    cached_tokens: int = 0
    seconds: float = 0.0
    prompt_tokens: int | None = None  # as the engine counted them, pictures expanded; None: it did not say
    weight_versions: list[int] = field(default_factory=list)  # one a token; empty: all are of `weight_version`
