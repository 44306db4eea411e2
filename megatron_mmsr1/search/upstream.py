"""How a backend that is not local is asked: queue, rate, breaker, ledger, deadline, retries, and one HTTP exchange.

A vendor's file says what to ask and how to read the answer; everything that can go wrong in between is handled here, once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
import orjson
from aiolimiter import AsyncLimiter

from megatron_mmsr1.config.search import BackendSection
from megatron_mmsr1.search.breaker import Breaker
from megatron_mmsr1.search.deadline import remaining, within
from megatron_mmsr1.search.interfaces import SearchFailure
from megatron_mmsr1.search.ledger import Ledger
from megatron_mmsr1.search.metrics import UpstreamMetrics
from megatron_mmsr1.search.secrets import Secret
from megatron_mmsr1.trajectory import ToolStatus

BACKOFF_S = 0.2  # doubled a retry, with full jitter
MAX_REPLY_BYTES = 16 * 2**20
DETAIL_CHARS = 300  # of what a vendor says of its failure
_DEAD = (ToolStatus.UPSTREAM_ERROR, ToolStatus.TIMEOUT)  # what counts against a backend in its breaker

# At INFO httpx logs whole URLs, at DEBUG httpcore logs headers: a key may stand in either.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(slots=True, frozen=True)
class Ask:
    """One HTTP request. `secret_params` and `secret_headers` hold keys; nothing of them is ever shown."""

    method: str
    url: str
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    secret_params: Mapping[str, Secret] = field(default_factory=dict)
    secret_headers: Mapping[str, Secret] = field(default_factory=dict)
    bearer: Secret | None = None


# What a vendor's file may know better about a failure than its HTTP code says: given the code and the decoded body (None where
# it is no JSON), the failure, or None for the rule of `classify`.
Explain = Callable[[int, Any], SearchFailure | None]


class Upstream:
    """The way to one backend. `secrets` are blotted out of whatever it says. Belongs to one event loop; `close` it there."""

    def __init__(
        self,
        name: str,
        section: BackendSection,
        ledger: Ledger,
        metrics: UpstreamMetrics,
        secrets: Sequence[Secret] = (),
    ):
        self.name = name
        self._section = section
        self._ledger = ledger
        self._metrics = metrics
        self._secrets = [form for s in secrets for form in {s.value, quote(s.value, safe="")}]
        self._slots = asyncio.Semaphore(section.concurrency)
        # Small windows: a rate of 20 a second is kept within each tenth of one, not as a burst of 20.
        rate = section.per_second
        self._rate = AsyncLimiter(max(1.0, rate / 10), max(1.0, rate / 10) / rate) if rate else None
        self.breaker = Breaker(name, section.breaker_failures, section.breaker_cooldown_s, self._turned)
        self._usd = (section.usd_per_1000 or 0.0) / 1000
        self._not_before = 0.0  # loop time; after a 429 that said when
        self._http: httpx.AsyncClient | None = None

    async def call[T](self, ask: Ask, read: Callable[[Any], T], explain: Explain = lambda _code, _body: None) -> T:
        """Send `ask` until it is answered or that makes no sense any more; `read` turns the JSON of a 2xx into the result.

        `read` may raise KeyError, TypeError, ValueError, AttributeError or IndexError for a body that is not as documented, or
        a SearchFailure of its own. Raises SearchFailure, whose status says what was wrong.
        """
        return await self.run(lambda: self._exchange(ask, read, explain))

    async def run[T](self, attempt: Callable[[], Awaitable[T]], *, breaker: bool = True) -> T:
        """The same protections for what is no JSON exchange. `attempt` is one try; it raises SearchFailure, whose `retry` says
        whether another makes sense. `breaker` False: its failures say nothing about the next call (pages of many hosts).
        """
        for left in range(self._section.retries, -1, -1):
            try:
                return await self._queued(attempt, breaker)
            except SearchFailure as e:
                if e.retry is None or not left:
                    raise
                done = self._section.retries - left
                wait = max(e.retry, random.uniform(0, BACKOFF_S * 2**done))
                if wait >= remaining():
                    raise
                self._metrics.retries.inc()
                await asyncio.sleep(wait)
        raise AssertionError("unreachable: the last try returns or raises")

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()

    # ---------------------------------------------------------------------------------------------------------- one try
    async def _queued[T](self, attempt: Callable[[], Awaitable[T]], breaker: bool) -> T:
        self._metrics.waiting.inc()
        try:
            await self._slots.acquire()
        finally:
            self._metrics.waiting.dec()
        try:
            await self._paced()
            if breaker:
                self.breaker.admit()
            return await self._booked(attempt, breaker)
        finally:
            self._slots.release()

    async def _paced(self) -> None:
        wait = self._not_before - asyncio.get_running_loop().time()
        if wait >= remaining():
            raise SearchFailure(ToolStatus.RATE_LIMITED, f"{self.name} wants {wait:.0f} s of rest")
        if wait > 0:
            await asyncio.sleep(wait)
        if self._rate is not None:
            await self._rate.acquire()

    async def _booked[T](self, attempt: Callable[[], Awaitable[T]], breaker: bool) -> T:
        started = time.perf_counter()
        status: ToolStatus | None = None
        booking = None
        try:
            booking = self._ledger.book(self.name, self._usd)
            async with within(self._section.timeout_s, self.name):
                result = await attempt()
            status = ToolStatus.OK
            self._metrics.usd.inc(self._usd)
            return result
        except SearchFailure as e:
            status = e.status
            billed = e.billed or e.status is ToolStatus.TIMEOUT
            if booking is not None and billed:
                self._metrics.usd.inc(self._usd)
            elif booking is not None:
                self._ledger.refund(booking)
            if e.retry and e.status is ToolStatus.RATE_LIMITED:
                self._not_before = max(self._not_before, asyncio.get_running_loop().time() + e.retry)
            raise
        finally:
            if breaker:
                self._judge(status)
            if status is not None:
                self._metrics.record(status, time.perf_counter() - started)

    def _judge(self, status: ToolStatus | None) -> None:
        if status in _DEAD:
            self.breaker.failed()
        elif status is None or status in (ToolStatus.BUDGET, ToolStatus.RATE_LIMITED):
            self.breaker.abandoned()  # cancelled, never sent, or put off: nothing was learnt
        else:
            self.breaker.succeeded()

    async def _exchange[T](self, ask: Ask, read: Callable[[Any], T], explain: Explain) -> T:
        code, headers, body = await self._send(ask)
        if not 200 <= code < 300:
            raise self._failed(code, headers, body, explain)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind and "json" not in kind:
            raise SearchFailure(ToolStatus.UPSTREAM_ERROR, f"{self.name} answered {kind} where JSON is documented")
        try:
            said = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise SearchFailure(ToolStatus.UPSTREAM_ERROR, f"{self.name} answered something that is not JSON") from None
        if (known := explain(code, said)) is not None:  # some put their errors into a 200
            raise self._clean(known)
        try:
            return read(said)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
            why = f"{self.name}'s answer is not as documented ({type(e).__name__}: {str(e)[:80]})"
            raise self._clean(SearchFailure(ToolStatus.UPSTREAM_ERROR, why)) from None

    async def _send(self, ask: Ask) -> tuple[int, httpx.Headers, bytes]:
        params = {**ask.params, **{k: s.value for k, s in ask.secret_params.items()}}
        headers = {**ask.headers, **{k: s.value for k, s in ask.secret_headers.items()}}
        if ask.bearer is not None:
            headers["authorization"] = f"Bearer {ask.bearer.value}"
        body = None if ask.json is None else orjson.dumps(ask.json)
        if body is not None:
            headers["content-type"] = "application/json"
        try:
            # A stream, so that a body without end is left at the cap.
            async with self._client().stream(ask.method, ask.url, params=params or None, headers=headers, content=body) as r:
                chunks, size = [], 0
                async for chunk in r.aiter_bytes():
                    size += len(chunk)
                    if size > MAX_REPLY_BYTES:
                        raise SearchFailure(ToolStatus.UPSTREAM_ERROR, f"{self.name} answered over {MAX_REPLY_BYTES} bytes")
                    chunks.append(chunk)
                return r.status_code, r.headers, b"".join(chunks)
        except httpx.ConnectError:
            raise SearchFailure(ToolStatus.UPSTREAM_ERROR, f"no connection to {self.name}", retry=0.0) from None
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            # Cut off in mid-answer: whether it was billed is not known, so it counts as billed and is not asked again.
            why = f"the exchange with {self.name} broke ({type(e).__name__})"
            raise SearchFailure(ToolStatus.UPSTREAM_ERROR, why, billed=isinstance(e, httpx.ReadError)) from None

    def _failed(self, code: int, headers: httpx.Headers, body: bytes, explain: Explain) -> SearchFailure:
        try:
            said = orjson.loads(body)
        except orjson.JSONDecodeError:
            said = None
        return self._clean(explain(code, said) or classify(self.name, code, said, headers))

    def _clean(self, e: SearchFailure) -> SearchFailure:
        detail = e.detail[: 4 * DETAIL_CHARS]
        for form in self._secrets:
            detail = detail.replace(form, "***")
        return SearchFailure(e.status, detail[:DETAIL_CHARS], retry=e.retry, billed=e.billed)

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            n = self._section.concurrency
            self._http = httpx.AsyncClient(
                timeout=None,  # the deadlines above are the clock
                limits=httpx.Limits(max_connections=n, max_keepalive_connections=n, keepalive_expiry=30),
                trust_env=False,
                follow_redirects=False,  # an API that redirects is not the one that was configured
            )
        return self._http

    def _turned(self, state: str) -> None:
        self._metrics.breaker(state)
        level = logging.WARNING if state == "open" else logging.INFO
        logging.getLogger(__name__).log(level, "%s: circuit breaker %s", self.name, state.replace("_", " "))


def classify(name: str, code: int, said: Any, headers: Mapping[str, str]) -> SearchFailure:
    """A failure by its HTTP code alone, with the vendor's own words where it gave some."""
    words = message(said)
    detail = f"{name} answered HTTP {code}" + (f": {words}" if words else "")
    if code == 429:
        return SearchFailure(ToolStatus.RATE_LIMITED, detail, retry=retry_after(headers))
    if code == 402:
        return SearchFailure(ToolStatus.BUDGET, detail)
    if code in (408, 504):
        return SearchFailure(ToolStatus.TIMEOUT, detail, retry=0.0 if code == 504 else None)
    if code >= 500:
        return SearchFailure(ToolStatus.UPSTREAM_ERROR, detail, retry=retry_after(headers))
    if code in (400, 413, 414, 422):
        return SearchFailure(ToolStatus.REFUSED, detail)
    # A key that is refused, an address that has moved: nobody who asks can mend it, and no query is at fault.
    return SearchFailure(ToolStatus.UPSTREAM_ERROR, detail)


def message(said: Any) -> str:
    """What a JSON error says in the places where vendors put it."""
    if isinstance(said, str):
        return said
    if isinstance(said, dict):
        for key in ("error", "message", "detail", "msg", "errors"):
            if said.get(key):
                return message(said[key])
    if isinstance(said, list) and said:
        return message(said[0])
    return ""


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds of a Retry-After header (a number, or a date of RFC 9110); 0 without one."""
    from email.utils import parsedate_to_datetime

    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
