"""What the search server counts, in Prometheus's text format. One registry an app, so that several live in one process."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from megatron_mmsr1.trajectory import ToolStatus

KINDS = ("text", "image", "read", "summarise", "retrieve")
BREAKER = {"closed": 0, "half_open": 1, "open": 2}
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        calls = Counter("mmsr1_search_calls", "Calls answered", ["kind", "status"], registry=self._registry)
        hits = Counter("mmsr1_search_cache_hits", "Calls that asked no backend", ["kind"], registry=self._registry)
        degraded = Counter("mmsr1_search_degraded", "Calls answered in part", ["kind"], registry=self._registry)
        seconds = Histogram(
            "mmsr1_search_seconds", "Time to answer a call", ["kind"], buckets=_SECONDS, registry=self._registry
        )
        self.in_flight = Gauge("mmsr1_search_in_flight", "Calls being answered now", registry=self._registry)
        self.store_errors = Counter(
            "mmsr1_search_store_errors", "Reads and writes that the store failed", registry=self._registry
        )
        self.replay_misses = Counter(
            "mmsr1_search_replay_misses", "Calls that the snapshot being replayed does not hold", registry=self._registry
        )
        # Looked up once: a labels() call costs more than the increment, and a series that is 0 is still a series.
        self._calls = {(k, s): calls.labels(k, s.value) for k in KINDS for s in ToolStatus}
        self._hits = {k: hits.labels(k) for k in KINDS}
        self._degraded = {k: degraded.labels(k) for k in KINDS}
        self._seconds = {k: seconds.labels(k) for k in KINDS}
        self.upstreams = Upstreams(self._registry)

    def record(self, kind: str, status: ToolStatus, seconds: float, *, cached: bool = False, degraded: bool = False) -> None:
        self._calls[kind, status].inc()
        self._seconds[kind].observe(seconds)
        if cached:
            self._hits[kind].inc()
        if degraded:
            self._degraded[kind].inc()

    def plain(self) -> dict[str, Any]:
        """The same counts as plain numbers: calls a kind and status, cache hits and degraded replies a kind."""
        return {
            "calls": {k: {s.value: n for s in ToolStatus if (n := _whole(self._calls[k, s]))} for k in KINDS},
            "cache_hits": {k: _whole(self._hits[k]) for k in KINDS},
            "degraded": {k: _whole(self._degraded[k]) for k in KINDS},
            "store_errors": _whole(self.store_errors),
            "replay_misses": _whole(self.replay_misses),
        }

    def render(self) -> bytes:
        return generate_latest(self._registry)


class Upstreams:
    """The families of series that every backend with a network behind it has."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def name(what: str) -> str:
            return f"mmsr1_search_upstream_{what}"

        self.calls = Counter(name("calls"), "Tries made at a backend", ["backend", "status"], registry=registry)
        self.seconds = Histogram(name("seconds"), "Time of a try", ["backend"], buckets=_SECONDS, registry=registry)
        self.retries = Counter(name("retries"), "Tries after the first", ["backend"], registry=registry)
        self.waiting = Gauge(name("waiting"), "Calls that wait for a place", ["backend"], registry=registry)
        self.usd = Counter(name("usd"), "Dollars booked, by the config's price", ["backend"], registry=registry)
        self.state = Gauge(name("breaker"), "0 closed, 1 half open, 2 open", ["backend"], registry=registry)
        self.turns = Counter(name("breaker_turns"), "Turns of the breaker", ["backend", "to"], registry=registry)
        self.held: dict[str, UpstreamMetrics] = {}

    def of(self, backend: str) -> UpstreamMetrics:
        if backend not in self.held:
            self.held[backend] = UpstreamMetrics(self, backend)
        return self.held[backend]


class UpstreamMetrics:
    """One backend's series, and the same counts as plain numbers for /v1/stats."""

    def __init__(self, families: Upstreams, backend: str) -> None:
        self._calls = {s: families.calls.labels(backend, s.value) for s in ToolStatus}
        self._seconds = families.seconds.labels(backend)
        self._state = families.state.labels(backend)
        self._turns = {s: families.turns.labels(backend, s) for s in BREAKER}
        self.retries = families.retries.labels(backend)
        self.waiting = families.waiting.labels(backend)
        self.usd = families.usd.labels(backend)
        self.statuses: dict[str, int] = {}
        self.breaker_state = "closed"
        self.breaker_turns = dict.fromkeys(BREAKER, 0)

    def plain(self) -> dict[str, Any]:
        return {
            "statuses": dict(self.statuses),
            "breaker": self.breaker_state,
            "breaker_turns": dict(self.breaker_turns),
            "retries": _whole(self.retries),
            "usd": _value(self.usd),
        }

    def record(self, status: ToolStatus, seconds: float) -> None:
        self._calls[status].inc()
        self._seconds.observe(seconds)
        self.statuses[status.value] = self.statuses.get(status.value, 0) + 1

    def breaker(self, state: str) -> None:
        self._state.set(BREAKER[state])
        self._turns[state].inc()
        self.breaker_state = state
        self.breaker_turns[state] += 1


def _whole(counter: Counter) -> int:
    return int(_value(counter))


def _value(counter: Counter) -> float:
    return next(iter(counter.collect())).samples[0].value
