"""Which engine takes a conversation: the least loaded, but beside its group's while the load is even, for the prefix cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

# Requests that an engine may be ahead of the idlest one before a group is split over two.
SLACK = 8
GROUPS_KEPT = 4096


class Balance:
    """Counts requests in flight an engine. Not for several threads."""

    def __init__(self, urls: list[str]) -> None:
        self.urls = urls
        self._load = dict.fromkeys(urls, 0)
        self._home: OrderedDict[str, str] = OrderedDict()  # group -> the engine that has its prompt

    @contextmanager
    def in_flight(self, url: str) -> Iterator[None]:
        self._load[url] += 1
        try:
            yield
        finally:
            self._load[url] -= 1

    def choose(self, *, prefer: str | None = None, avoid: set[str] | frozenset[str] = frozenset()) -> str:
        """`prefer` unless it is to be avoided, else the least loaded; those to avoid only if there is no other."""
        if prefer is not None and prefer not in avoid:
            return prefer
        left = [u for u in self.urls if u not in avoid] or self.urls
        return min(left, key=lambda u: self._load[u])

    def choose_for(self, group: str) -> str:
        """An engine for a new conversation of `group`."""
        least = self.choose()
        home = self._home.get(group)
        if home is None or self._load[home] > self._load[least] + SLACK:
            home = least
        self._home[group] = home
        self._home.move_to_end(group)
        if len(self._home) > GROUPS_KEPT:
            self._home.popitem(last=False)
        return home
