"""What the gateway counts, in Prometheus's text format. One registry an app, so that several live in one process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from megatron_mmsr1.trajectory import ToolStatus

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """No label holds a key, a question or an address."""

    def __init__(self) -> None:
        r = self._registry = CollectorRegistry()
        self.requests = Counter("mmsr1_gateway_requests", "Requests of the API, by what was answered", ["status"], registry=r)
        self.disconnects = Counter("mmsr1_gateway_disconnects", "Clients that went away before their answer", registry=r)
        self.seconds = Histogram("mmsr1_gateway_seconds", "Time of an answer", buckets=_SECONDS, registry=r)
        self.first = Histogram("mmsr1_gateway_first_event_seconds", "Time to the first event", buckets=_SECONDS, registry=r)
        tokens = Counter("mmsr1_gateway_tokens", "Tokens of answers, over all turns", ["kind"], registry=r)
        self.prompt_tokens, self.completion_tokens = tokens.labels("prompt"), tokens.labels("completion")
        self.turns = Counter("mmsr1_gateway_turns", "Turns sampled for answers", registry=r)
        self._calls = Counter("mmsr1_gateway_searches", "Tool calls made for answers", ["kind", "status"], registry=r)
        for kind in ("image", "text"):  # there from the start, so that a rate can be taken; other tools' with their first call
            for status in ToolStatus:
                self._calls.labels(kind, status.value)
        self.answering = Gauge("mmsr1_gateway_answering", "Answers being made", registry=r)
        self.waiting = Gauge("mmsr1_gateway_waiting", "Requests that wait for a place, or are still being read", registry=r)

    def called(self, kind: str, status: ToolStatus) -> None:
        """One call of a tool. Kinds are those of the tools that are configured, so there are few."""
        self._calls.labels(kind, status.value).inc()

    def render(self) -> bytes:
        return generate_latest(self._registry)
