"""What all requests of a gateway share, and what of a request needs no waiting: who calls, which model, what is asked for."""

from __future__ import annotations

import secrets
import time
from typing import Any

from starlette.types import Scope

from megatron_mmsr1.search.fetch import Fetcher
from serving.answering import Ask
from serving.chat import Chat
from serving.gateway.errors import ApiError
from serving.gateway.limits import Limits
from serving.gateway.metrics import Metrics
from serving.gateway.pictures import Pictures
from serving.gateway.schema import ChatRequest, SearchOptions
from serving.keys import open_keys
from serving.settings import ServeConfig
from serving.stack import Stack

NO_SEARCH = ":no-search"
HEALTH_S = 1.0  # how long what was found out about the engines is told to others who ask


class Gateway:
    """Belongs to one event loop. Raises UsageError for keys that cannot be used, or are missing where they must not be."""

    def __init__(self, cfg: ServeConfig, stack: Stack, *, fetcher: Fetcher | None = None):
        self.cfg, self.stack = cfg, stack
        self.keys = open_keys(cfg.gateway)
        self.limits = Limits(cfg.gateway.limits)
        self.metrics = Metrics()
        self.pictures = Pictures(cfg.gateway, cfg.search.fetch, fetcher)
        self.created = int(time.time())
        self._health: tuple[float, dict[str, Any]] | None = None

    @property
    def models(self) -> list[str]:
        return [self.cfg.name, self.cfg.name + NO_SEARCH]

    def caller(self, scope: Scope) -> str:
        """The name of the key that a request comes with; "" where none is needed. Raises ApiError 401."""
        if self.keys is None:
            return ""
        said = next((v for k, v in scope["headers"] if k == b"authorization"), b"").decode("latin-1")
        scheme, _, key = said.partition(" ")
        name = self.keys.name(key.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            why = "no such API key" if said else "this gateway wants an API key: Authorization: Bearer KEY"
            raise ApiError(401, why, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return name

    def ask(self, r: ChatRequest) -> Ask:
        """What a request asks for, its conversation yet to be read. Raises ApiError 404 or 400."""
        if r.model not in self.models:
            raise no_model(r.model)
        s = r.search or SearchOptions()
        server = s.server or ""
        if server and server not in self.stack.searches:
            named = ", ".join(sorted(n for n in self.stack.searches if n)) or "none"
            raise ApiError(400, f"no such search server; there are: {named}", param="search.server", code="invalid_value")
        tools = self._tools(s)
        if r.model.endswith(NO_SEARCH):
            tools = ()
        elif server not in self.stack.searches:  # a tool that asks no search server can be called all the same
            offline = {t.kind for t in self.stack.answerer.context.tools.values() if t.price != "search"}
            tools = tuple(t for t in tools if t in offline)
        if s.require and not tools:
            raise ApiError(400, "no search may be made, and one is required", param="search.require", code="invalid_value")
        bounds = [n for n in (r.max_tokens, r.max_completion_tokens) if n is not None]
        return Ask(
            Chat([]),
            tools=tools,
            max_searches=s.max_searches,
            deadline_s=s.deadline_s,
            server=server if tools else "",
            require_search=bool(s.require),
            temperature=r.temperature,
            max_tokens=min(bounds, default=None),
            seed=secrets.randbits(63) if r.seed is None else r.seed,
        )

    def _tools(self, s: SearchOptions) -> tuple[str, ...]:
        """The kinds of tools that the request may call. Raises ApiError 400 for one that there is not."""
        known = tuple(t.kind for t in self.stack.answerer.context.tools.values())
        unknown = [t for t in s.tools or () if t not in known]
        if unknown:
            shown = unknown[0].encode("ascii", "backslashreplace").decode()
            why = f"no such tool: {shown!r}; there are: {', '.join(known)}"
            where = f"search.tools[{(s.tools or []).index(unknown[0])}]"
            raise ApiError(400, why, param=where, code="invalid_value")
        return known if s.tools is None else tuple(t for t in known if t in s.tools)

    def most_searches(self, ask: Ask) -> int:
        """How many searches an answer may make."""
        c = self.stack.answerer.context
        allowed = sum(n for name, n in c.allowed.items() if ask.tools is None or c.tools[name].kind in ask.tools)
        allowed = min(allowed, c.limits.max_rounds - 1)
        return allowed if ask.max_searches is None else min(allowed, ask.max_searches)

    async def health(self) -> dict[str, Any]:
        """As `replies.Health` has it. URLs are not told."""
        if self._health is None or time.monotonic() - self._health[0] > HEALTH_S:
            self._health = time.monotonic(), _health(await self.stack.healthy())
        return self._health[1]


def no_model(name: str) -> ApiError:
    # Names are quoted cautiously: they may be anything.
    shown = name[:100].encode("ascii", "backslashreplace").decode()
    return ApiError(404, f"no model named {shown!r}; see /v1/models", param="model", code="model_not_found")


def _health(found: dict[str, Any]) -> dict[str, Any]:
    engines = list(found["engines"].values())
    up = sum(s == "ok" for s in engines)
    status = "ok" if found["ok"] else "degraded" if up else "unavailable"
    out = {
        "status": status,
        "engines": {"up": up, "total": len(engines)},
        "searches": {name or "default": state for name, state in found["searches"].items()},
    }
    if not up:
        out |= ApiError(503, "no engine answers", code="engine_unavailable").envelope
    return out
