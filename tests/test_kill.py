"""The end of processes that asyncio has started."""

from __future__ import annotations

import asyncio
import sys

from megatron_mmsr1.procs.kill import kill

TALKS = "import sys, time; sys.stdout.write('x' * 10_000_000); sys.stdout.flush(); time.sleep(600)"


async def test_a_process_whose_output_nobody_reads_can_be_waited_for() -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", TALKS, stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    assert await process.stdout.readexactly(1) == b"x"
    while "paused" not in repr(process.stdout):  # asyncio has read more than anybody took, and reads no further
        await asyncio.sleep(0.01)
    assert await asyncio.wait_for(kill(process), 60) == -9


async def test_who_waits_may_be_cancelled_and_the_process_ends_all_the_same() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(600)")
    waiting = asyncio.create_task(kill(process))
    await asyncio.sleep(0)
    waiting.cancel()
    assert await asyncio.wait_for(process.wait(), 60) == -9
    assert await kill(process) == -9  # again, of one that has gone
