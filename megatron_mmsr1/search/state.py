"""The server's own account of itself, for `mmsr1 search stats` and for the trainer's logs: /v1/stats."""

from __future__ import annotations

import time
from typing import Any

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.search.calls import Calls
from megatron_mmsr1.search.ledger import Ledger
from megatron_mmsr1.search.metrics import Metrics
from megatron_mmsr1.search.snapshots import describe


class State:
    def __init__(self, cfg: SearchConfig, calls: Calls, ledger: Ledger, metrics: Metrics):
        self._cfg, self._calls, self._ledger, self._metrics = cfg, calls, ledger, metrics
        self._started = time.monotonic()

    def stats(self) -> dict[str, Any]:
        """Counts since the server started; `spend` is the ledger's, over all of its life."""
        held = describe(self._calls.cache, self._calls.backends)
        return {
            "mode": held["mode"],
            "seconds": round(time.monotonic() - self._started, 3),
            "in_flight": self._calls.in_flight,
            "snapshot": {"id": held["id"], "entries": held["entries"]},
            "backends": held["backends"],
            "upstreams": {name: m.plain() for name, m in self._metrics.upstreams.held.items()},
            **self._metrics.plain(),
            "budget": self._cfg.budget.model_dump(exclude={"ledger"}, exclude_none=True),
            "spend": self._ledger.spent(),
        }
