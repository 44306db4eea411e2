"""Access to the gateway: an id for each request, one line of JSON in the log, and no callers under another's name.

The log has neither pictures nor keys nor a word of the conversation.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.gateway.errors import ApiError
from serving.gateway.metrics import Metrics
from serving.keys import is_loopback

LOGGER = "mmsr1.gateway.access"
API = "/v1/"
_RECORD = "mmsr1.record"
_log = logging.getLogger(LOGGER)


@dataclass(slots=True)
class Record:
    """What is known of a request by its end. `outcome`: answered, disconnected, or an error's code."""

    method: str
    path: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: float = field(default_factory=time.monotonic)
    key: str = ""
    status: int = 0
    model: str = ""
    stream: bool = False
    outcome: str = ""
    first_event_s: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    turns: int = 0
    searches: int = 0

    def first_event(self) -> None:
        if self.first_event_s is None:
            self.first_event_s = time.monotonic() - self.started

    def line(self) -> dict[str, Any]:
        return {
            "time": round(time.time(), 3),
            "id": self.id,
            "key": self.key,
            "method": self.method,
            "path": self.path[:200],
            "status": self.status,
            "outcome": self.outcome,
            "seconds": round(time.monotonic() - self.started, 4),
            "first_event_s": None if self.first_event_s is None else round(self.first_event_s, 4),
            "model": self.model,
            "stream": self.stream,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "turns": self.turns,
            "searches": self.searches,
        }


def record_of(scope: Scope) -> Record:
    return scope[_RECORD]


def log_to(stream: TextIO = sys.stderr) -> None:
    """Let the access log go to `stream`, a JSON object a line; until this is called it goes where logging is set up to."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _log.handlers[:] = [handler]
    _log.setLevel(logging.INFO)
    _log.propagate = False


class Access:
    """ASGI middleware. `hosts`: names beside this machine's own that a request may be for; None: any name.

    A web page whose name was made to lead to our loopback address can call us from the browser of whoever reads it; without
    keys, only its Host header tells it from a caller of ours.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, hosts: Collection[str] | None):
        self._app, self._metrics = app, metrics
        self._hosts = None if hosts is None else {h.lower() for h in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and not self._expected(scope):
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = scope[_RECORD] = Record(scope["method"], scope["path"])
        name = (b"x-request-id", record.id.encode())

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), name]
            await send(message)

        try:
            if self._expected(scope):
                await self._app(scope, receive, tell)
            else:
                why = "this name is not one of the gateway's: call it by localhost, or add the name to gateway.hosts"
                await ApiError(403, why, code="unknown_host").response()(scope, receive, tell)
        except BaseException:
            record.status, record.outcome = record.status or 500, record.outcome or "internal_error"
            raise
        finally:
            if record.path.startswith(API):
                self._metrics.requests.labels(str(record.status)).inc()
                if _log.isEnabledFor(logging.INFO):
                    _log.info(json.dumps(record.line()))

    def _expected(self, scope: Scope) -> bool:
        if self._hosts is None:
            return True
        host = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"host"), "").lower()
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        # An address is no name that somebody could lead elsewhere, but for this machine's own it would be the wrong one.
        return is_loopback(name) or name in self._hosts
