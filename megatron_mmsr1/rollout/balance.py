"""Which engine takes a turn: one that is well; of those the least loaded, but beside its group's while the load is even, for
the prefix cache.

An engine that failed is left alone for a time that doubles with every failure in a row. After that it gets one turn as a trial,
and others only once it has answered: a dead engine, which is always idle, attracts nobody.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# Requests that an engine may be ahead of the idlest one before a group is split over two.
SLACK = 8
GROUPS_KEPT = 4096
COOL_S, MAX_COOL_S = 1.0, 30.0


@dataclass(slots=True)
class _Health:
    failures: int = 0  # in a row
    until: float = 0.0  # no turn before


class Balance:
    """Counts requests in flight an engine, and its failures. Not for several threads."""

    def __init__(self, urls: list[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.urls = urls
        self._clock = clock
        self._load = dict.fromkeys(urls, 0)
        self._health = {u: _Health() for u in urls}
        self._home: OrderedDict[str, str] = OrderedDict()  # group -> the engine that has its prompt

    @contextmanager
    def in_flight(self, url: str) -> Iterator[None]:
        self._load[url] += 1
        try:
            yield
        finally:
            self._load[url] -= 1

    def failed(self, url: str) -> None:
        """It did not answer, or answered that it cannot. The failures of turns that ran together count once."""
        h, now = self._health[url], self._clock()
        if now < h.until:
            return
        h.failures += 1
        h.until = now + min(MAX_COOL_S, COOL_S * 2 ** (h.failures - 1))

    def answered(self, url: str) -> None:
        self._health[url] = _Health()

    def well(self, url: str) -> bool:
        """Whether a turn may go there now: it is well, or is due for a trial that nobody makes yet."""
        h = self._health[url]
        return not h.failures or (self._clock() >= h.until and not self._load[url])

    @property
    def any_well(self) -> bool:
        return any(self.well(u) for u in self.urls)

    def choose(self, *, prefer: str | None = None, avoid: set[str] | frozenset[str] = frozenset()) -> str:
        """`prefer` if it is well and not to be avoided, else the least loaded of the well ones; those to avoid, and those that
        are not well, only if there is no other."""
        if prefer is not None and prefer not in avoid and self.well(prefer):
            return prefer
        well = [u for u in self.urls if self.well(u)]
        left = [u for u in well if u not in avoid] or well or [u for u in self.urls if u not in avoid] or self.urls
        return min(left, key=lambda u: self._load[u])

    def choose_for(self, group: str) -> str:
        """An engine for a new conversation of `group`, or for one whose engine is no longer well."""
        least = self.choose()
        home = self._home.get(group)
        if home is None or not self.well(home) or self._load[home] > self._load[least] + SLACK:
            home = least
        self._home[group] = home
        self._home.move_to_end(group)
        if len(self._home) > GROUPS_KEPT:
            self._home.popitem(last=False)
        return home
