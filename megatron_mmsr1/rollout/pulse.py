"""Does an engine that owes answers still generate? Asked while turns wait, so that one that hangs costs `hung_after_s` once and
not the whole deadline of every turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

PROBE_S = 5.0  # between two questions


class Pulse:
    """Of one engine. `probe` says whether it generated within its own time limit; it is asked only while someone waits."""

    def __init__(self, probe: Callable[[], Awaitable[bool]], hung_after_s: float) -> None:
        self._probe, self._hung_after_s = probe, hung_after_s
        self._waiting: set[asyncio.Task[object]] = set()
        self._watch: asyncio.Task[None] | None = None

    async def guard[R](self, answer: Awaitable[R]) -> R:
        """The answer, or TimeoutError once the engine has been without a pulse for `hung_after_s`."""
        task: asyncio.Task[R] = asyncio.ensure_future(answer)  # type: ignore[arg-type]
        self._waiting.add(task)  # type: ignore[arg-type]
        if self._watch is None or self._watch.done():
            self._watch = asyncio.ensure_future(self._run())
        try:
            return await task
        except asyncio.CancelledError:
            mine = asyncio.current_task()
            if task.cancelled() and not (mine is not None and mine.cancelling()):
                raise TimeoutError from None  # by the watch, not by our caller
            task.cancel()
            raise
        finally:
            self._waiting.discard(task)  # type: ignore[arg-type]

    async def _run(self) -> None:
        last = time.monotonic()
        while self._waiting:
            await asyncio.sleep(min(PROBE_S, self._hung_after_s / 4))
            if not self._waiting:
                return
            if await self._probe():
                last = time.monotonic()
            elif time.monotonic() - last >= self._hung_after_s:
                for task in list(self._waiting):
                    task.cancel()
                return

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
