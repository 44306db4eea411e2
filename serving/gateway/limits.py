"""Who may do how much: places and a queue for all, a minute's requests, concurrency and a day's searches for each key.

Counts are this process's own and held in memory: a restart forgets them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

from serving.gateway.errors import limited
from serving.settings import LimitsSection

MINUTE_S, DAY_S = 60.0, 86_400
_WEIGHT = 0.1  # of the newest answer in the mean of their durations


@dataclass(slots=True)
class _Account:
    requests: deque[float] = field(default_factory=deque)
    running: int = 0
    day: int = 0
    searches: int = 0  # that day: made, and reserved to answers in the making


class Limits:
    """`clock` is monotonic, `now` the time of day, both in seconds. Belongs to one event loop."""

    def __init__(
        self, cfg: LimitsSection, *, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ):
        self._cfg, self._clock, self._now = cfg, clock, now
        self._accounts: dict[str, _Account] = {}
        self._slots = asyncio.Semaphore(cfg.concurrency)
        self._mean_s = 1.0
        self.inside = self.answering = 0

    @property
    def waiting(self) -> int:
        return self.inside - self.answering

    @contextlib.contextmanager
    def enter(self, key: str) -> Iterator[None]:
        """A request of `key`, from before its body is read to its end. Raises ApiError 429."""
        cfg, account = self._cfg, self._account(key)
        if self.inside >= cfg.concurrency + cfg.queue:
            wait = self._mean_s * (self.inside - cfg.concurrency + 1) / cfg.concurrency
            raise limited("the gateway is full: try again later", "overloaded", min(wait, MINUTE_S))
        if cfg.key_concurrency is not None and account.running >= cfg.key_concurrency:
            why = f"this key has {account.running} requests running, which is its limit"
            raise limited(why, "concurrency_limit_exceeded", self._mean_s)
        self._count(account)
        self.inside += 1
        account.running += 1
        try:
            yield
        finally:
            self.inside -= 1
            account.running -= 1

    @contextlib.asynccontextmanager
    async def slot(self, deadline_s: float) -> AsyncIterator[None]:
        """A place among the answers being made, after at most `deadline_s` seconds. Raises ApiError 429."""
        try:
            async with asyncio.timeout(deadline_s):
                await self._slots.acquire()
        except TimeoutError:
            raise limited("no place became free in time", "overloaded", self._mean_s) from None
        self.answering += 1
        started = self._clock()
        try:
            yield
        finally:
            self._slots.release()
            self.answering -= 1
            self._mean_s += _WEIGHT * (self._clock() - started - self._mean_s)

    def reserve(self, key: str, wanted: int) -> int:
        """How many of `wanted` searches the key may make today, kept for it until `settle`. ApiError 429 for none."""
        if self._cfg.searches_per_day is None or not wanted:
            return wanted
        account = self._today(key)
        left = self._cfg.searches_per_day - account.searches
        if left <= 0:
            why = f"this key has made its {self._cfg.searches_per_day} searches of today (UTC)"
            raise limited(why, "search_quota_exceeded", DAY_S - self._now() % DAY_S, retry=False)
        granted = min(left, wanted)
        account.searches += granted
        return granted

    def settle(self, key: str, reserved: int, made: int) -> None:
        if self._cfg.searches_per_day is not None:
            account = self._today(key)
            account.searches = max(0, account.searches - reserved + made)

    def _count(self, account: _Account) -> None:
        if self._cfg.requests_per_minute is None:
            return
        now, seen = self._clock(), account.requests
        while seen and seen[0] <= now - MINUTE_S:
            seen.popleft()
        if len(seen) >= self._cfg.requests_per_minute:
            why = f"this key has made {len(seen)} requests within a minute, which is its limit"
            raise limited(why, "rate_limit_exceeded", seen[0] + MINUTE_S - now)
        seen.append(now)

    def _account(self, key: str) -> _Account:
        return self._accounts.setdefault(key, _Account())

    def _today(self, key: str) -> _Account:
        account, day = self._account(key), int(self._now() // DAY_S)
        if account.day != day:
            account.day, account.searches = day, 0
        return account
