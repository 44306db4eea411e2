"""The Answerer's events in OpenAI's form: chunks of a stream, or one completion. The answer alone is `content`."""

from __future__ import annotations

import time
from typing import Any

import orjson

from megatron_mmsr1.trajectory import Status, Trajectory
from serving.answering import Answered, Delta, SearchEnded, SearchStarted, Source, Step
from serving.gateway.errors import NO_RETRY, ApiError
from serving.split import ANSWER

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"


def event(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


class Completion:
    """One answer's form. `feed` every event before `Answered`, then `last` or `body`."""

    def __init__(self, id: str, model: str, *, trace: bool, usage: bool):
        self._trace, self._usage = trace, usage
        self._head = {"id": f"chatcmpl-{id}", "created": int(time.time()), "model": model}
        self._reasoning: list[str] = []
        self._steps: list[dict[str, Any]] = []
        self._round = 0

    def feed(self, step: Step) -> dict[str, Any]:
        """The event as a chunk."""
        if isinstance(step, Delta):
            if step.kind == ANSWER:
                return self._chunk({"content": step.text})
            text = step.text
            if step.round != self._round:  # tags kept the turns apart
                text = ("\n\n" if self._reasoning else "") + text.lstrip()
            self._round = step.round
            self._reasoning.append(text)
            return self._chunk({"reasoning_content": text})
        if isinstance(step, SearchStarted | SearchEnded):
            said = _step(step)
            if isinstance(step, SearchEnded):
                self._steps.append(said)
            return self._chunk({}) | {"search_step": said}
        raise TypeError(f"{type(step).__name__} is not told in the middle of a stream")

    def first(self) -> dict[str, Any]:
        return self._chunk({"role": "assistant", "content": ""})

    def last(self, done: Answered) -> list[dict[str, Any]]:
        """The chunks that end a stream: citations, the end, usage where it was asked for."""
        cited = citations(done)
        out = [self._chunk({"annotations": cited})] if cited else []
        out.append(self._chunk({}, done.finish) | self._sourced(done))
        if self._usage:
            out.append({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage(done)})
        return out

    def body(self, done: Answered) -> dict[str, Any]:
        message = {
            "role": "assistant",
            "content": done.text,
            "reasoning_content": "".join(self._reasoning).strip(),
            "annotations": citations(done),
            "refusal": None,
        }
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": done.finish, "logprobs": None}],
            "usage": usage(done),
            "search_steps": self._steps,
            **self._sourced(done),
        }

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _sourced(self, done: Answered) -> dict[str, Any]:
        out: dict[str, Any] = {
            "citations": list(dict.fromkeys(link(s.url) for s in done.sources if s.supports and link(s.url))),
            "search_results": [{**_result(s), "kind": s.kind, "supports": s.supports} for s in done.sources],
        }
        if self._trace:
            out["trace"] = None if done.trajectory is None else trace(done.trajectory)
        return out


def failure(done: Answered) -> ApiError | None:
    """What a client is told of an answer that did not come about. The details, which name inner addresses, are for the log."""
    if not done.error:
        return None
    if done.status is Status.ABORTED:
        return ApiError(503, done.error, code="deadline_exceeded", headers=NO_RETRY)
    if done.status is Status.TOOL_ERROR:
        return ApiError(503, "a search failed, and this gateway is set to answer nothing then", code="search_failed")
    return ApiError(503, "the engine failed or is away; try again", code="engine_unavailable", headers={"retry-after": "2"})


def usage(done: Answered) -> dict[str, Any]:
    u = done.usage
    return {
        "prompt_tokens": u.prompt_tokens,
        "completion_tokens": u.completion_tokens,
        "total_tokens": u.prompt_tokens + u.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": u.cached_tokens},
        "searches": u.searches,
    }


def citations(done: Answered) -> list[dict[str, Any]]:
    """A citation of the whole answer for each source that supports it."""
    cited = {link(s.url): s.title for s in reversed(done.sources) if s.supports and link(s.url)}
    return [
        {
            "type": "url_citation",
            "url_citation": {"url": url, "title": title, "start_index": 0, "end_index": len(done.text)},
        }
        for url, title in reversed(cited.items())
    ]


def link(url: str) -> str:
    """An http(s) URL, or nothing: a result may name any other scheme, which a client might make a link of."""
    return url if url[:8].lower().startswith(("http://", "https://")) and url.isprintable() else ""


def trace(t: Trajectory) -> dict[str, Any]:
    return {
        "status": t.status.value,
        "token_ids": t.token_ids.tolist(),
        "loss_mask": t.loss_mask.tolist(),
        "logprobs": t.logprobs.tolist(),
        "weight_versions": t.weight_versions.tolist(),
        "images": [{"sha256": i.sha256, "grid_thw": i.grid_thw} for i in t.images],
        "turns": [
            {"role": x.role, "start": x.start, "end": x.end, "text": x.text, "action": x.action, "seconds": x.seconds}
            for x in t.turns
        ],
    }


def _step(s: SearchStarted | SearchEnded) -> dict[str, Any]:
    if isinstance(s, SearchStarted):
        return {"type": "started", "kind": s.kind, "query": s.query, "round": s.round}
    return {
        "type": "ended",
        "kind": s.kind,
        "query": s.query,
        "round": s.round,
        "status": s.status.value,
        "seconds": s.seconds,
        "cached": s.cached,
        "degraded": s.degraded,
        "results": [_result(r) for r in s.sources],
    }


def _result(s: Source) -> dict[str, Any]:
    return {"n": s.n, "title": s.title, "url": link(s.url), "snippet": s.text}
