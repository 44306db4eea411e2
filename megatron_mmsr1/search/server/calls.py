"""What the search server can be asked, whatever road the question came by: one endpoint, or many calls in a batch.

A call that was understood is answered with a body whose `status` says what became of it, a failed search included.
"""

from __future__ import annotations

import asyncio
import binascii
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.search import wire as requests
from megatron_mmsr1.search.backends.interfaces import Backend, SearchFailure
from megatron_mmsr1.search.server.compose import Backends
from megatron_mmsr1.search.server.metrics import Metrics
from megatron_mmsr1.search.server.pipelines import ImageSearch, TextSearch, retrieve
from megatron_mmsr1.search.store.cache import Cache, Value
from megatron_mmsr1.search.upstream.deadline import within
from megatron_mmsr1.search.upstream.ledger import Account, account
from megatron_mmsr1.trajectory import ToolStatus

MAX_IN_FLIGHT = 16_384  # beyond it a call is answered 429 at once, rather than all of them late
Body = dict[str, Any]


@dataclass(slots=True, frozen=True)
class Caller:
    """Who asks: the account that pays, and the call's own id where a rollout names it."""

    account: Account
    call: str = ""


class Calls:
    """The operations over one set of backends and one cache. `answer` is the only way in."""

    def __init__(self, cfg: SearchConfig, backends: Backends, cache: Cache, metrics: Metrics):
        self.backends, self.cache = backends, cache
        self._metrics = metrics
        self._deadline_s = cfg.deadline_s
        self._text = TextSearch(cfg, backends, cache)
        self._image = None if backends.image is None else ImageSearch(backends.image, cache)
        self.in_flight = 0
        self.ops: dict[str, tuple[type[requests.Request], Callable[[Any], Awaitable[Body]]]] = {
            "text": (requests.TextRequest, self._search_text),
            "image": (requests.ImageRequest, self._search_image),
            "read": (requests.ReadRequest, self._read),
            "summarise": (requests.SummariseRequest, self._summarise),
            "retrieve": (requests.RetrieveRequest, self._retrieve),
        }

    async def answer(self, op: str, body: Any, caller: Caller) -> Body:
        """The reply's body. `body`: JSON bytes, or what a batch parsed already. Raises HTTPException 400 for a request that
        is not as it must be, 429 when too much is in flight."""
        if self.in_flight >= MAX_IN_FLIGHT:
            self._metrics.record(op, ToolStatus.RATE_LIMITED, 0.0)
            raise HTTPException(429, f"{MAX_IN_FLIGHT} calls in flight", {"retry-after": "1"})
        self.in_flight += 1
        started = time.perf_counter()
        status: ToolStatus | None = ToolStatus.UPSTREAM_ERROR
        cached = degraded = False
        try:
            reply = await self._answer(op, self._checked(op, body), caller)
            status, cached, degraded = reply["status"], reply.get("cached", False), reply.get("degraded", False)
            reply["seconds"] = time.perf_counter() - started
            return reply
        except HTTPException:
            status = ToolStatus.REFUSED
            raise
        except asyncio.CancelledError:
            status = None  # whoever asked has gone: that is no answer, and no failure of ours
            raise
        finally:
            self.in_flight -= 1
            if status is not None:
                self._metrics.record(op, status, time.perf_counter() - started, cached=cached, degraded=degraded)

    def _checked(self, op: str, body: Any) -> requests.Request:
        model = self.ops[op][0]
        try:
            return model.model_validate_json(body) if isinstance(body, bytes) else model.model_validate(body)
        except ValidationError as e:
            raise HTTPException(400, explain(e)) from None

    async def _answer(self, op: str, request: requests.Request, caller: Caller) -> Body:
        account.set(caller.account)  # each call runs in a task, and so in a context, of its own
        reply: Body = {}
        failed: SearchFailure | None = None
        try:
            recorded = recorded_outcome(self.cache, op, caller.call, request)
            if recorded is not None:
                return recorded
            async with within(self._deadline_s, "the call"):
                reply = await self.ops[op][1](request)
        except SearchFailure as e:
            reply, failed = {"status": e.status, "detail": e.detail}, e
        try:
            await keep_outcome(self.cache, op, caller.call, request, reply, failed=failed is not None)
        except SearchFailure as unkept:
            first = "" if failed is None else f"{failed.detail}; "
            reply = {"status": (failed or unkept).status, "detail": first + unkept.detail}
        return reply

    async def _search_text(self, r: requests.TextRequest) -> Body:
        return _found(await self._text(r.query, r.k), self._text.backend)

    async def _search_image(self, r: requests.ImageRequest) -> Body:
        try:
            image = binascii.a2b_base64(r.image_base64, strict_mode=True)
        except ValueError as e:  # binascii.Error is one; a character outside ASCII is another
            raise HTTPException(400, f"image_base64: {e}") from None
        if self._image is None:
            why = "this server has no image search: set search.image.backend, or put images.jsonl into search.corpus"
            raise SearchFailure(ToolStatus.REFUSED, why)
        return _found(await self._image(image, r.k), self._image.backend)

    async def _read(self, r: requests.ReadRequest) -> Body:
        page = await self._text.read(r.url)
        status = ToolStatus.OK if page.text else ToolStatus.EMPTY
        body: Body = {"status": status, "url": page.url, "title": page.title, "text": page.text}
        return {**body, "backend": _name(self.backends.reader)}

    async def _summarise(self, r: requests.SummariseRequest) -> Body:
        summary = await self._text.summary(r.query, r.text)
        status = ToolStatus.OK if summary else ToolStatus.EMPTY
        return {"status": status, "summary": summary, "backend": _name(self.backends.summariser)}

    async def _retrieve(self, r: requests.RetrieveRequest) -> Body:
        return {"status": ToolStatus.OK, **await retrieve(self._text, r)}


def _name(backend: Backend | None) -> str:
    return "" if backend is None else backend.name


def _found(value: Value, backend: Backend) -> Body:
    return {
        "status": ToolStatus.EMPTY if value.data == b"[]" else ToolStatus.OK,
        "hits": orjson.Fragment(value.data),
        "cached": value.cached,
        "degraded": value.degraded,
        "backend": backend.name,
    }


def explain(e: ValidationError) -> str:
    """The first few things that are wrong with a request, each with its field."""
    errors = e.errors(include_input=False)[:5]
    return "; ".join(": ".join(filter(None, (".".join(str(p) for p in err["loc"]), err["msg"]))) for err in errors)


# -------------------------------------------------------------------------------------------------------------------- outcomes
# What one call met, where that is not what everyone gets: a failure, or a result that is degraded. In `record` it is kept under
# the call's own id and what it asked, in the replays it is the first thing looked for. So a recorded run's failures come back
# to the very calls that met them, and stand in the way of nobody else: not of a call that was answered in full, nor of one that
# has the same id in another run and asks something else.
#
# A call may be asked again after it failed (rollout/throttle.py does, and a resumed run). Its outcomes are numbered; the last
# one is what the run went on with; ANSWERED says that this was what everyone gets.
OUTCOME = "outcome"
ANSWERED = b"answered"


def recorded_outcome(cache: Cache, op: str, call: str, request: requests.Request) -> Body | None:
    """The reply that this call got when the snapshot was recorded; None where it got what everyone gets."""
    if not call or not cache.replays:
        return None
    _, last = _outcomes(cache, _outcome(op, call, request))
    return None if last in (None, ANSWERED) else {**orjson.loads(last), "cached": True}


async def keep_outcome(cache: Cache, op: str, call: str, request: requests.Request, body: Body, *, failed: bool) -> None:
    """Record `body`, if it is one of a kind. `failed`: it holds no result, whatever its status. Raises SearchFailure if it
    cannot be kept."""
    if not call or cache.mode != "record":
        return
    name = _outcome(op, call, request)
    n, last = _outcomes(cache, name)
    now = orjson.dumps(body) if failed or body.get("degraded") else ANSWERED
    if now != (last or ANSWERED):
        await cache.put(_place(name, n), OUTCOME, now)


def _outcomes(cache: Cache, name: bytes) -> tuple[int, bytes | None]:
    """How many outcomes of a call there are, and the last."""
    last = None
    for n in count():
        held = cache.get(_place(name, n))
        if held is None:
            return n, last
        last = held
    raise AssertionError("unreachable")


def _outcome(op: str, call: str, request: requests.Request) -> bytes:
    asked = hashlib.sha256(request.model_dump_json().encode()).hexdigest()
    return orjson.dumps([OUTCOME, op, call, asked])


def _place(name: bytes, n: int) -> bytes:
    return hashlib.sha256(b"%d %b" % (n, name)).digest()
