"""What the search server counts, in Prometheus's text format. One registry an app, so that several live in one process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from megatron_mmsr1.trajectory import ToolStatus

KINDS = ("text", "image", "read", "summarise", "retrieve")
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        calls = Counter("mmsr1_search_calls", "Calls answered", ["kind", "status"], registry=self._registry)
        hits = Counter("mmsr1_search_cache_hits", "Calls that asked no backend", ["kind"], registry=self._registry)
        seconds = Histogram(
            "mmsr1_search_seconds", "Time to answer a call", ["kind"], buckets=_SECONDS, registry=self._registry
        )
        self.in_flight = Gauge("mmsr1_search_in_flight", "Calls being answered now", registry=self._registry)
        self.store_errors = Counter(
            "mmsr1_search_store_errors", "Reads and writes that the store failed", registry=self._registry
        )
        # Looked up once: a labels() call costs more than the increment, and a series that is 0 is still a series.
        self._calls = {(k, s): calls.labels(k, s.value) for k in KINDS for s in ToolStatus}
        self._hits = {k: hits.labels(k) for k in KINDS}
        self._seconds = {k: seconds.labels(k) for k in KINDS}

    def record(self, kind: str, status: ToolStatus, seconds: float, *, cached: bool = False) -> None:
        self._calls[kind, status].inc()
        self._seconds[kind].observe(seconds)
        if cached:
            self._hits[kind].inc()

    def render(self) -> bytes:
        return generate_latest(self._registry)
