"""The throttle between a rollout and its tools: so many calls at once, and none while the tools are down.

When more than `rollout.pause_above` of the latest calls ended in an infrastructure failure, the throttle closes: calls wait,
and those that were on their way when it closed and fail wait with them and are asked again. One call at a time goes through as
a probe; the first that is answered opens it. An outage so costs time, and not a step's worth of trajectories. A reached budget
is no outage: waiting mends nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable

from megatron_mmsr1.config import RolloutConfig
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.rollout.context import Search
from megatron_mmsr1.search.wire import ImageReply, Reply, TextReply
from megatron_mmsr1.trajectory import ToolStatus

LATEST = 64  # calls that the share is taken over
ENOUGH = 16  # of them at least, before it says anything
PROBE_S = 1.0  # between two probes


class Throttle:
    """A `Search` in front of another. Belongs to one event loop. `on_change` is told when it closes and opens."""

    def __init__(self, search: Search, cfg: RolloutConfig, on_change: Callable[[], None] = lambda: None):
        self._search, self._cfg, self.on_change = search, cfg, on_change
        self._slots = asyncio.Semaphore(cfg.tool_concurrency)
        self._failed: deque[bool] = deque(maxlen=LATEST)
        self._open = asyncio.Event()
        self._open.set()
        self._probing = False
        self._since = 0.0
        self._before = 0.0  # seconds of earlier pauses
        self.pauses = 0
        self.asked_again = 0

    async def text(self, query: str, k: int = 5, *, call: str = "") -> TextReply:
        return await self._through(lambda: self._search.text(query, k, call=call))

    async def image(self, data: bytes, k: int = 5, *, call: str = "") -> ImageReply:
        return await self._through(lambda: self._search.image(data, k, call=call))

    @property
    def paused(self) -> bool:
        return not self._open.is_set()

    @property
    def paused_s(self) -> float:
        """Seconds that it was closed, all told."""
        return self._before + (asyncio.get_running_loop().time() - self._since if self.paused else 0.0)

    @property
    def failing(self) -> float:
        """Share of the latest calls that ended in an infrastructure failure."""
        return sum(self._failed) / max(len(self._failed), 1)

    async def _through[R: Reply](self, ask: Callable[[], Awaitable[R]]) -> R:
        while True:
            probe = await self._enter()
            try:
                async with self._slots:
                    if self.paused and not probe:
                        continue  # the throttle closed while it waited for its place
                    pauses = self.pauses
                    reply = await ask()
            finally:
                if probe:
                    self._probing = False
            late = self.pauses != pauses and not self.paused  # it speaks of an outage that is over
            if not (late and _outage(reply.status)):
                self._note(reply.status, probe)
                if not (self.paused and _outage(reply.status)):
                    return reply
            self.asked_again += 1

    async def _enter(self) -> bool:
        """Wait until it is open, or for the turn to be the probe; says which."""
        while self.paused:
            if asyncio.get_running_loop().time() - self._since > self._cfg.pause_limit_s:
                raise RunError(
                    f"the search tools have been failing for over rollout.pause_limit_s={self._cfg.pause_limit_s:g} s: see the "
                    "search server's log and mmsr1 search stats; the same command resumes the run"
                )
            if self._probing:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._open.wait(), PROBE_S)
                continue
            self._probing = True
            try:
                await asyncio.sleep(PROBE_S)
            except asyncio.CancelledError:
                self._probing = False
                raise
            return True
        return False

    def _note(self, status: ToolStatus, probe: bool) -> None:
        failed = _outage(status)
        if self.paused:
            if probe and not failed:
                self._resume()
            return
        if status is ToolStatus.BUDGET:
            return
        self._failed.append(failed)
        if len(self._failed) >= ENOUGH and self.failing > self._cfg.pause_above:
            self._since = asyncio.get_running_loop().time()
            self.pauses += 1
            self._open.clear()
            self.on_change()

    def _resume(self) -> None:
        self._before = self.paused_s
        self._failed.clear()  # what was before says nothing about what comes
        self._open.set()
        self.on_change()


def _outage(status: ToolStatus) -> bool:
    return status.infrastructure and status is not ToolStatus.BUDGET
