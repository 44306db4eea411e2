"""The inside of a process that scores trajectories: `python -m megatron_mmsr1.rollout.scoring_process`.

`scoring.py` starts it. Frames (8 bytes of length, then a pickle) come by stdin and go by what stdout was; stdout itself
becomes stderr, so that a reward may print. First comes (sys.path, reward settings as plain data, deadline in seconds, directory
for the reward's files or None) and goes (how many calls at once, or the message of a UsageError). Then (number, trajectory)
comes, and (number, "parts" | "failed" | "broken", what) goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import inspect
import os
import pickle
import signal
import struct
import sys
import traceback
from pathlib import Path
from typing import Any, BinaryIO

ASYNC_CALLS = 64  # in flight at once in a process whose reward is async
PR_SET_PDEATHSIG = 1
FAILED, BROKEN, PARTS = "failed", "broken", "parts"


def read_frame(stream: BinaryIO) -> Any:
    """The next frame; None at the end."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    return pickle.loads(stream.read(struct.unpack("<Q", head)[0]))


def frame(value: Any) -> bytes:
    data = pickle.dumps(value)
    return struct.pack("<Q", len(data)) + data


def main() -> None:
    with contextlib.suppress(OSError, AttributeError):  # Linux: a reward that hangs must not outlive its rollout worker
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    path, settings, deadline_s, directory = read_frame(sys.stdin.buffer)
    sys.path[:] = path
    from megatron_mmsr1.errors import UsageError
    from megatron_mmsr1.reward import from_settings, read_settings

    try:
        reward = from_settings(read_settings(settings))
        if directory is not None:
            reward.keep_files_in(Path(directory))
    except UsageError as e:
        out.write(frame(str(e)))
        return
    out.write(frame(ASYNC_CALLS if reward.waits else 1))
    if not reward.waits:
        while (asked := read_frame(sys.stdin.buffer)) is not None:
            number, trajectory = asked
            out.write(frame((number, *asyncio.run(_score(reward, trajectory, deadline_s)))))
        return
    asyncio.run(_serve(reward, deadline_s, out))


async def _serve(reward: Any, deadline_s: float, out: BinaryIO) -> None:
    """Every call that comes, at once."""
    loop = asyncio.get_running_loop()

    async def one(number: int, trajectory: Any) -> None:
        out.write(frame((number, *await _score(reward, trajectory, deadline_s))))

    async with asyncio.TaskGroup() as tasks:
        while (asked := await loop.run_in_executor(None, read_frame, sys.stdin.buffer)) is not None:
            tasks.create_task(one(*asked))


async def _score(reward: Any, trajectory: Any, deadline_s: float) -> tuple[str, Any]:
    from megatron_mmsr1.errors import UsageError
    from megatron_mmsr1.reward.base import checked, source

    where = f"{source(reward)}: {type(reward).__name__}.parts"
    try:
        values = reward.parts(trajectory)
        if inspect.isawaitable(values):
            async with asyncio.timeout(deadline_s):
                values = await values
    except TimeoutError:
        return FAILED, f"{where} took longer than {deadline_s:g} s"
    except UsageError as e:
        return BROKEN, str(e)
    except Exception as e:  # a person's code may raise anything; it costs this trajectory its reward
        at = traceback.extract_tb(e.__traceback__)[-1]
        return FAILED, f"{where} raised {type(e).__name__}: {e} ({at.filename}:{at.lineno})"
    try:
        return PARTS, checked(reward, values)
    except UsageError as e:
        return BROKEN, str(e)


if __name__ == "__main__":
    main()
