"""One sampled turn as the engine answers it, read strictly: what does not hold together is an error, not a trajectory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from megatron_mmsr1.errors import RunError


class EngineError(RunError):
    """An engine failed a request for good. `url` names it; `retryable` tells whether another try could have helped."""

    def __init__(self, message: str, *, url: str = "", retryable: bool = True) -> None:
        super().__init__(message)
        self.url = url
        self.retryable = retryable


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


def read_answer(url: str, status: int, raw: bytes, seconds: float) -> Generation:
    """The engine's answer as a Generation; EngineError if it is an error, an abort, or not what was asked for."""
    try:
        answer = orjson.loads(raw)
    except orjson.JSONDecodeError:
        answer = None
    return read(url, status, answer, seconds, raw)


def read(url: str, status: int, answer: Any, seconds: float, raw: bytes = b"") -> Generation:
    """As `read_answer`, of JSON that was parsed already."""
    if status != 200 or not isinstance(answer, dict) or "meta_info" not in answer:
        error = answer.get("error", answer) if isinstance(answer, dict) else raw[:500].decode("utf-8", "replace")
        message = error.get("message", error) if isinstance(error, dict) else error
        raise EngineError(f"{url}: HTTP {status}: {message}", url=url, retryable=status >= 500 or status == 200)
    meta = answer["meta_info"]
    ids = list(answer["output_ids"])
    finish = (meta.get("finish_reason") or {}).get("type", "")
    if finish not in ("stop", "length"):
        reason = meta.get("finish_reason")
        raise EngineError(f"{url}: the turn ended as {reason}", url=url)
    logprobs = [entry[0] for entry in meta.get("output_token_logprobs") or []]
    said = [entry[1] for entry in meta.get("output_token_logprobs") or []]
    if said != ids or any(x is None for x in logprobs):
        raise EngineError(f"{url}: {len(logprobs)} log-probs do not belong to its {len(ids)} tokens", url=url, retryable=False)
    return Generation(
        token_ids=ids,
        logprobs=logprobs,
        weight_version=_version(meta.get("weight_version")),
        finish=finish,
        cached_tokens=int(meta.get("cached_tokens") or 0),
        seconds=seconds,
        prompt_tokens=meta.get("prompt_tokens"),
        weight_versions=_versions(meta.get("weight_versions"), len(ids)),
    )


def _version(said: object) -> int:
    """SGLang's versions are strings; "default" is what a server holds before its first update, which is version 0."""
    if said in (None, "default"):
        return 0
    if not str(said).isdecimal():
        raise EngineError(f"the engine's weight version is {said!r}, not one of ours: it is a number", retryable=False)
    return int(str(said))


def _versions(spans: list[dict[str, Any]] | None, n: int) -> list[int]:
    """SGLang's spans [start, end) of one version each, a version a token; empty if there is one version only."""
    if not spans or len(spans) == 1:
        return []
    out = [_version(spans[-1]["version"])] * n
    for span in spans:
        out[span["start"] : span["end"]] = [_version(span["version"])] * (min(span["end"], n) - span["start"])
    return out
