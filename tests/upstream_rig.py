"""An upstream in virtual time, with its books, whose backend does what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from ledger_sums import run_total

from megatron_mmsr1.config.search import BackendSection, BudgetSection
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.server.metrics import Metrics
from megatron_mmsr1.search.upstream.ledger import Ledger
from megatron_mmsr1.search.upstream.secrets import Secret
from megatron_mmsr1.search.upstream.upstream import Upstream


def now() -> float:
    return asyncio.get_running_loop().time()


class Rig:
    """An upstream and its books. `tries`: when each began; `peak`: the most at once."""

    def __init__(self, budget: BudgetSection | None = None, secrets: tuple[Secret, ...] = (), **section: Any):
        self.metrics = Metrics().upstreams.of("x")
        self.ledger = Ledger(None, budget or BudgetSection())
        self.section = BackendSection(backend="x", **section)
        self.upstream = Upstream("x", self.section, self.ledger, self.metrics, secrets)
        # The virtual loop's clock, for the breaker reads the real one.
        self.upstream.breaker._clock = now
        self.tries: list[float] = []
        self.in_flight = self.peak = 0

    async def ask(self, seconds: float = 1.0, failure: SearchFailure | None = None, **how: Any) -> str:
        async def attempt() -> str:
            self.tries.append(now())
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            try:
                await asyncio.sleep(seconds)
            finally:
                self.in_flight -= 1
            if failure is not None:
                raise SearchFailure(failure.status, failure.detail, retry=failure.retry, billed=failure.billed)
            return "found"

        return await self.upstream.run(attempt, **how)

    @property
    def billed(self) -> int:
        return run_total(self.ledger, "")[0]

    @property
    def state(self) -> str:
        return self.upstream.breaker.state


def outcomes(done: list[Any]) -> dict[str, int]:
    """How many calls ended in which way."""
    names = [str(d.status) if isinstance(d, SearchFailure) else d if isinstance(d, str) else type(d).__name__ for d in done]
    return {name: names.count(name) for name in set(names)}


async def together(*calls: Awaitable[Any]) -> dict[str, int]:
    return outcomes(await asyncio.gather(*calls, return_exceptions=True))
