"""How a backend that is not local is asked: queue, rate, breaker, ledger, deadline, retries.

A vendor's file says what to ask and how to read the answer; everything that can go wrong in between is handled here, once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import quote, quote_plus

from megatron_mmsr1.config.search import BackendSection
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.server.metrics import UpstreamMetrics
from megatron_mmsr1.search.upstream.deadline import remaining, within
from megatron_mmsr1.search.upstream.exchange import Ask, Exchange, Explain, classify, message, retry_after
from megatron_mmsr1.search.upstream.ledger import Booking, Ledger
from megatron_mmsr1.search.upstream.limits import Breaker, Outage, Pace
from megatron_mmsr1.search.upstream.secrets import Secret
from megatron_mmsr1.trajectory import ToolStatus

__all__ = ["Ask", "Explain", "Upstream", "classify", "message", "retry_after"]

BACKOFF_S = 0.2  # doubled a retry, with full jitter
MAX_WAIT_S = 60.0  # a vendor that wants more is asked again after that, in case it was wrong
DETAIL_CHARS = 300  # of what a vendor says of its failure
EARLY_S = 0.005  # a timer may fire that much before its moment
_DEAD = (ToolStatus.UPSTREAM_ERROR, ToolStatus.TIMEOUT)  # what counts against a backend in its breaker


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
        self._secrets = tuple(secrets)
        self._slots = asyncio.Semaphore(section.concurrency)
        self._pace = Pace(name, section.per_second) if section.per_second else None
        self.breaker = Breaker(name, section.breaker_failures, section.breaker_cooldown_s, self._turned)
        self._outage = Outage(name, logging.getLogger(__name__))
        self._usd = (section.usd_per_1000 or 0.0) / 1000
        self._not_before = 0.0  # loop time; after a 429 that said when
        self._exchange = Exchange(name, section.concurrency)

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
        # A call that twins share runs in a task of its own, which no timer of theirs ends: their deadline is set up again.
        async with within(math.inf, self.name):
            tries = 0
            while True:
                try:
                    return await self._queued(attempt, breaker)
                except SearchFailure as e:
                    self._scrub(e)
                    if e.retry is None or tries == self._section.retries:
                        raise
                    wait = max(e.retry, random.uniform(0, BACKOFF_S * 2**tries))
                    if wait >= min(remaining(), MAX_WAIT_S):
                        raise
                tries += 1
                self._metrics.retries.inc()
                await asyncio.sleep(wait)

    async def close(self) -> None:
        await self._exchange.close()

    # ---------------------------------------------------------------------------------------------------------- one try
    async def _queued[T](self, attempt: Callable[[], Awaitable[T]], breaker: bool) -> T:
        if breaker:
            self._check_breaker()  # who will be turned away does not queue for it
        self._metrics.waiting.inc()
        try:
            await self._slots.acquire()
        finally:
            self._metrics.waiting.dec()
        try:
            if breaker:
                self._check_breaker()
            await self._paced()
            return await self._tried(attempt, self.breaker.admit() if breaker else None)
        finally:
            self._slots.release()

    def _check_breaker(self) -> None:
        try:
            self.breaker.check()
        except SearchFailure as e:
            self._outage.failed(e.detail)
            raise

    async def _paced(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            while (wait := self._not_before - now()) > EARLY_S:
                if wait >= remaining():
                    raise SearchFailure(ToolStatus.RATE_LIMITED, f"{self.name} wants {wait:.0f} s of rest")
                await asyncio.sleep(wait)
            if self._pace is not None:
                await self._pace.wait()
            if self._not_before - now() <= EARLY_S:
                return

    async def _tried[T](self, attempt: Callable[[], Awaitable[T]], ticket: int | None) -> T:
        given = min(self._section.timeout_s, remaining())
        booking = self._book(given, ticket)
        started = time.perf_counter()
        status, why, billed = None, "", True
        try:
            async with within(given, self.name):
                result = await attempt()
            status = ToolStatus.OK
            return result
        except SearchFailure as e:
            self._scrub(e)
            status, why = e.status, e.detail
            billed = e.billed or status is ToolStatus.TIMEOUT
            if e.retry and status is ToolStatus.RATE_LIMITED:
                rest = asyncio.get_running_loop().time() + min(e.retry, MAX_WAIT_S)
                self._not_before = max(self._not_before, rest)
            raise
        except asyncio.CancelledError:
            # Where the deadline and this try's own time end at one moment, the timer outside wins; and it was sent.
            if remaining() <= EARLY_S:
                status, why = ToolStatus.TIMEOUT, f"no answer within {given:.3g} s"
            raise
        finally:
            if billed:
                self._metrics.usd.inc(self._usd)
            else:
                self._ledger.refund(booking)
            self._judge(ticket, status, given, why)
            if status is not None:
                self._metrics.record(status, time.perf_counter() - started)

    def _book(self, given: float, ticket: int | None) -> Booking:
        try:
            if given <= 0:
                raise SearchFailure(ToolStatus.TIMEOUT, f"no time was left to ask {self.name}")
            return self._ledger.book(self.name, self._usd)
        except SearchFailure:
            self._judge(ticket, None, given, "")
            raise

    def _judge(self, ticket: int | None, status: ToolStatus | None, given: float, why: str) -> None:
        if ticket is None:
            return
        # A try that the deadline cut short says more about our queue than about the backend.
        cut = status is ToolStatus.TIMEOUT and given < self._section.timeout_s / 2
        if status in _DEAD and not cut:
            self.breaker.failed(ticket, why)
            if self.breaker.state == "open":
                self._outage.failed(why)
        elif cut or status in (None, ToolStatus.BUDGET, ToolStatus.RATE_LIMITED):
            self.breaker.abandoned(ticket)  # cancelled, never sent, or put off: nothing was learnt
        else:
            self.breaker.succeeded(ticket)

    def _scrub(self, e: SearchFailure) -> None:
        """In place: a copy would keep the original as its context."""
        detail = e.detail
        for value in {form for s in self._secrets for form in (s.value, quote(s.value, safe=""), quote_plus(s.value))}:
            detail = detail.replace(value, "***")
        e.detail = detail[:DETAIL_CHARS]
        e.args = (f"{e.status}: {e.detail}",)

    def _turned(self, state: str) -> None:
        self._metrics.breaker(state)
        if state == "closed":
            self._outage.worked()
