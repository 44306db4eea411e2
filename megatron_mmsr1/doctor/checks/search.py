"""Whether the search that a config names can be asked: keys, accounts, or the server that runs already. Nothing is searched."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.config.search import BackendSection, BudgetSection
from megatron_mmsr1.doctor.check import Check, Finding, Level, Place, Who
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.interfaces import Accounted, Quota, SearchFailure
from megatron_mmsr1.search.backends.tools import Tools
from megatron_mmsr1.search.backends.uploaders.signed_route import PublicFiles
from megatron_mmsr1.search.server.compose import make
from megatron_mmsr1.search.server.estimate import estimate, is_local
from megatron_mmsr1.search.server.metrics import Metrics
from megatron_mmsr1.search.upstream.ledger import Ledger
from megatron_mmsr1.search.upstream.secrets import Secret


def run(place: Place) -> list[Finding]:
    cfg = place.cfg
    if cfg is None or not cfg.searches:
        return []
    if cfg.search.url is not None:
        return [_server(cfg)]
    if cfg.search.mode == "replay-strict":
        return [Finding("backends", "none is asked: search.mode is replay-strict")]
    return asyncio.run(_backends(cfg))


def _server(cfg: RunConfig) -> Finding:
    from megatron_mmsr1.run import preflight

    began = time.perf_counter()
    preflight.search_answers(cfg)
    ms = (time.perf_counter() - began) * 1e3
    return Finding("server", f"{cfg.search.url} is ready, answered in {ms:.1f} ms; its keys are its own", data={"ms": ms})


async def _backends(cfg: RunConfig) -> list[Finding]:
    # What would be asked after the run's own caps and prices: an account costs nothing.
    tools = _Tools(cfg.search, Metrics(), Ledger(None, BudgetSection()), PublicFiles())
    calls = {s.kind: s.calls * cfg.train.steps for s in estimate(cfg).stages}
    sections: dict[str, BackendSection] = {k: getattr(cfg.search, k) for k in ("text", "image", "read", "summarise")}
    ours = [sections.pop("summarise").backend] if cfg.placement.summariser.model else []
    found = [await _backend(kind, section, tools, calls.get(kind, 0.0)) for kind, section in sections.items()]
    return found + [Finding("search.summarise", f"{name}: the run starts its model (placement.summariser)") for name in ours]


async def _backend(kind: str, section: BackendSection, tools: _Tools, calls: float) -> Finding:
    what, name = f"search.{kind}", section.backend
    if name in ("none", "auto") or is_local(kind, name):
        return Finding(what, f"{name}: on this machine, or none")
    tools.held = []
    try:
        backend = make(kind, section, tools)
    except UsageError as e:
        return Finding(what, f"{name} cannot be used", Level.ERROR, str(e))
    try:
        quota = await backend.quota() if isinstance(backend, Accounted) else None
    except SearchFailure as e:
        # A server of one's own before the vendor need not pass its account on.
        level = Level.WARNING if section.url else Level.ERROR
        return Finding(
            what, f"{name}: its account: {e.detail}", level, "a search may fail alike: check the key and the network"
        )
    finally:
        await backend.close()
    keys = f"{name}: {' and '.join(tools.held)} set" if tools.held else f"{name}: asks without a key"
    if quota is None:
        return Finding(what, f"{keys}; its quota is not known: no free way to ask for it" if tools.held else keys)
    return _left(what, keys, quota, calls)


def _left(what: str, keys: str, quota: Quota, calls: float) -> Finding:
    data: dict[str, Any] = {"left": quota.left, "of": quota.of, "estimated_calls": calls}
    if quota.left is None:
        return Finding(what, f"{keys}; no limit", data=data)
    value = f"{keys}; {quota.left:,}{f' of {quota.of:,}' if quota.of else ''} searches left"
    if quota.left <= 0:
        return Finding(
            what, value, Level.ERROR, "every search would be refused: extend the plan, or name another backend", data=data
        )
    if quota.left < calls:
        advice = f"the run may make {calls:,.0f} calls (mmsr1 search estimate): extend the plan, or replay a recorded store"
        return Finding(what, value, Level.WARNING, advice, data=data)
    return Finding(what, value, data=data)


class _Tools(Tools):
    """Notes the names of the keys that a backend took."""

    held: list[str]

    def key(self, section: BackendSection, default: str) -> Secret:
        found = super().key(section, default)
        self.held.append(section.key or default)
        return found

    def optional_key(self, section: BackendSection, default: str) -> Secret | None:
        found = super().optional_key(section, default)
        if found is not None and not section.key:
            self.held.append(default)
        return found

    def named_key(self, name: str, who: str) -> Secret:
        found = super().named_key(name, who)
        self.held.append(name)
        return found


CHECK = Check("keys and quotas of the search backends; never a search", Who.FIRST, run)
