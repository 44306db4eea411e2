"""One request for an answer: admitted, read, answered, and ended at once where its client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from typing import Any

from pydantic import ValidationError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from megatron_mmsr1.data.images import ImageError
from serving.answering import Answered, AskError, SearchEnded, Step
from serving.gateway import bodies, conversation
from serving.gateway.access import Record, record_of
from serving.gateway.completion import DONE, Completion, event, failure
from serving.gateway.errors import ApiError, defect, explain
from serving.gateway.gateway import Gateway
from serving.gateway.schema import ChatRequest
from serving.gateway.stream import Out

_log = logging.getLogger("mmsr1.gateway")


class Exchange(Response):
    """A response that reads its own request: the body must not be read before the caller is known, nor beyond its cap."""

    def __init__(self, gateway: Gateway):
        super().__init__()
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        g, record = self._gateway, record_of(scope)
        try:
            record.key = g.caller(scope)
            with g.limits.enter(record.key):
                body = await bodies.read(scope, receive, g.cfg.gateway.limits.body_bytes)
                await _while_there(receive, _Answering(g, record, _parse(body), send).run(), record)
        except ApiError as e:
            record.outcome = e.code or "error"
            if e.headers.get("connection") == "close":
                await bodies.refuse(e, receive, send)
            else:
                await e.response()(scope, receive, send)
        except bodies.Disconnected:
            record.outcome = "disconnected"
        if record.outcome == "disconnected":
            record.status = record.status or 499  # nobody got it; as proxies log it
            g.metrics.disconnects.inc()


def _parse(body: bytes) -> ChatRequest:
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as e:
        raise explain(e) from None


async def _while_there(receive: Receive, work: Coroutine[Any, Any, None], record: Record) -> None:
    """`work` to its end, or until the client goes away. Raises what it raises."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if record.outcome:  # all is said; that also ends what the client may still send
            await task
        elif not task.done():
            record.outcome = "disconnected"
            return
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.wait((task, gone))
    task.result()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Answering:
    """The answer to one parsed request."""

    def __init__(self, gateway: Gateway, record: Record, request: ChatRequest, send: Send):
        self._g, self._record, self._request = gateway, record, request
        self._out = Out(send)
        record.model, record.stream = request.model[:200], bool(request.stream)
        usage = bool(request.stream_options and request.stream_options.include_usage)
        trace = bool(request.search and request.search.trace)
        self._completion = Completion(record.id, request.model, trace=trace, usage=usage)

    async def run(self) -> None:
        """Raises ApiError as long as nothing was sent; after that an error is the stream's last event."""
        try:
            await self._run()
        except ApiError as e:
            if not self._out.started:
                raise
            self._record.outcome = e.code or "error"
            await self._out.write(event(e.envelope), last=True)
        except Exception:
            _log.exception("request %s", self._record.id)
            self._record.outcome = "internal_error"
            if not self._out.started:
                raise defect() from None
            await self._out.write(event(defect().envelope), last=True)

    async def _run(self) -> None:
        g, request = self._g, self._request
        limits = g.cfg.gateway.limits
        ask = g.ask(request)
        ask.chat = await conversation.read(request, g.pictures, limits, g.cfg.protocol)
        deadline_s = min(limits.deadline_s, ask.deadline_s or limits.deadline_s)
        queued = time.monotonic()
        async with self._out.alive(g.cfg.gateway.keepalive_s, on=bool(request.stream)), g.limits.slot(deadline_s):
            ask.deadline_s = max(0.001, deadline_s - (time.monotonic() - queued))
            reserved = g.limits.reserve(self._record.key, g.most_searches(ask))
            ask.max_searches = reserved
            made = 0
            try:
                async with contextlib.aclosing(g.stack.answerer.answer(ask)) as steps:
                    async for step in steps:
                        if isinstance(step, SearchEnded):
                            made += 1
                            g.metrics.called(step.kind, step.status)
                        await self._tell(step)
            except ImageError as e:
                raise ApiError(400, f"a picture cannot be used: {e}", param="messages", code="invalid_image") from None
            except AskError as e:
                raise ApiError(400, str(e), param="messages", code=e.code) from None
            finally:
                g.limits.settle(self._record.key, reserved, made)

    async def _tell(self, step: Step) -> None:
        completion = self._completion
        self._record.first_event()
        if not isinstance(step, Answered):
            chunk = completion.feed(step)
            if self._request.stream:
                await self._out.write((b"" if self._out.spoke else event(completion.first())) + event(chunk))
            return
        self._note(step)
        failed = failure(step)
        if failed is not None:
            _log.warning("request %s: %s", self._record.id, step.error)
            raise failed
        self._record.outcome = "answered"
        if not self._request.stream:
            await self._out.json(completion.body(step))
            return
        chunks = ([] if self._out.spoke else [completion.first()]) + completion.last(step)
        await self._out.write(b"".join(map(event, chunks)) + DONE, last=True)

    def _note(self, done: Answered) -> None:
        m, r, u = self._g.metrics, self._record, done.usage
        r.prompt_tokens, r.completion_tokens, r.searches = u.prompt_tokens, u.completion_tokens, u.searches
        r.turns = (len(done.trajectory.assistant_texts) if done.trajectory is not None else 0) + done.forced
        m.prompt_tokens.inc(u.prompt_tokens)
        m.completion_tokens.inc(u.completion_tokens)
        m.turns.inc(r.turns)
        m.seconds.observe(time.monotonic() - r.started)
        if r.first_event_s is not None:
            m.first.observe(r.first_event_s)
