"""The end of a process that asyncio has started."""

from __future__ import annotations

import asyncio
import contextlib


async def kill(process: asyncio.subprocess.Process) -> int:
    """SIGKILL, and wait until it is gone, whoever cancels the wait; its exit code. What it wrote and nobody read is dropped.

    `Process.wait` of Python up to 3.12.3 returns only once every pipe is at its end, and asyncio does not read on where nobody
    takes what it has read: a process killed in the middle of a long answer would be waited for for ever.
    """
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    return await asyncio.shield(_gone(process))


async def _gone(process: asyncio.subprocess.Process) -> int:
    if process.stdout is not None:
        while await process.stdout.read(1 << 16):
            pass
    return await process.wait()
