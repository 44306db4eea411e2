"""Rewards beside the rollout, in processes of their own under a deadline: one that hangs, raises or dies costs its trajectory
the reward, never the run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import struct
import sys
from pathlib import Path
from typing import Any

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.procs.kill import kill
from megatron_mmsr1.reward import from_settings, keep, score_trajectory
from megatron_mmsr1.rollout.scoring_process import BROKEN, PARTS, frame
from megatron_mmsr1.trajectory import Trajectory

START_S = 120.0  # a reward may load a model
GRACE_S = 5.0  # beyond the deadline, for a process that keeps the deadline itself
ERROR = "reward_error"  # the key of `Trajectory.extra` that says why there is no reward


class Scoring:
    """Sets `reward` and `reward_parts` of trajectories. For one event loop.

    A reward of ours that is pure and quick (`Reward.in_process`) runs in a thread; any other in `workers` processes, started at
    the first call. A call that fails leaves `reward` None and says why in `extra["reward_error"]`. Values that break the
    contract raise UsageError that names the file. `directory`: where a reward may keep files.
    """

    def __init__(self, settings: Section, *, workers: int, deadline_s: float, directory: Path | None = None) -> None:
        self._settings = settings
        reward = from_settings(settings)
        self._local = reward.in_process
        self._where = type(reward).__name__
        self._workers = [] if self._local else [_Worker(settings, deadline_s, directory) for _ in range(workers)]
        self._free: asyncio.Queue[_Worker] = asyncio.Queue()
        for worker in self._workers:
            self._free.put_nowait(worker)

    async def score(self, trajectory: Trajectory) -> None:
        """`reward.score_trajectory`, isolated. Raises UsageError for a reward that cannot be loaded or breaks the contract."""
        if self._local or trajectory.infrastructure_failure:
            await asyncio.to_thread(score_trajectory, trajectory, self._settings)
            return
        trajectory.reward, trajectory.reward_parts = None, {}
        kind, said = await self._ask(trajectory)
        if kind == BROKEN:
            raise UsageError(said)
        if kind == PARTS:
            keep(trajectory, said)
        else:
            trajectory.extra[ERROR] = said

    async def close(self) -> None:
        for worker in self._workers:
            await worker.stop()

    async def _ask(self, trajectory: Trajectory) -> tuple[str, Any]:
        """A worker serves as many calls at once as it says; it stands in the queue while it has room for one more."""
        worker = await self._free.get()
        try:
            await worker.ready()
        except UsageError:
            self._free.put_nowait(worker)
            raise
        worker.taken += 1
        standing = worker.taken < worker.capacity
        if standing:
            self._free.put_nowait(worker)
        try:
            return await worker.ask(trajectory)
        finally:
            worker.taken -= 1
            if worker.taken == worker.capacity - 1:
                self._free.put_nowait(worker)


class _Worker:
    """One process, started anew after its end."""

    def __init__(self, settings: Section, deadline_s: float, directory: Path | None) -> None:
        self._settings, self._deadline_s, self._directory = settings, deadline_s, directory
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._answers: dict[int, asyncio.Future[tuple[str, Any]]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._number = 0
        self.capacity, self.taken = 1, 0

    async def ready(self) -> None:
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                await self._start()

    async def ask(self, trajectory: Trajectory) -> tuple[str, Any]:
        """("parts", values), ("broken", message) or ("failed", message)."""
        process = self._process
        assert process is not None and process.stdin is not None
        self._number += 1
        number, answers = self._number, self._answers
        answer = answers[number] = asyncio.get_running_loop().create_future()
        try:
            process.stdin.write(frame((number, trajectory)))
            await process.stdin.drain()
            return await asyncio.wait_for(answer, self._deadline_s + (GRACE_S if self.capacity > 1 else 0))
        except TimeoutError:
            await self.stop()
            return "failed", f"{self._name()} took longer than {self._deadline_s:g} s; its process was ended"
        except OSError:
            return "failed", f"{self._name()} ended its process"
        finally:
            answers.pop(number, None)

    async def stop(self) -> None:
        process, reader, self._process, self._reader = self._process, self._reader, None, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        if process is not None:
            await process.wait()
        if reader is not None:
            await reader

    async def _start(self) -> None:
        command = [sys.executable, "-m", "megatron_mmsr1.rollout.scoring_process"]
        paths = os.pathsep.join(p for p in sys.path if p)
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}
        )
        assert process.stdin is not None and process.stdout is not None
        plain = self._settings.model_dump(mode="json", serialize_as_any=True)
        process.stdin.write(frame((sys.path, plain, self._deadline_s, self._directory and str(self._directory))))
        try:
            said = await asyncio.wait_for(_next(process.stdout), START_S)
        except (TimeoutError, asyncio.IncompleteReadError) as e:
            code = await kill(process)
            why = f"was not loaded within {START_S:g} s" if isinstance(e, TimeoutError) else f"ended its process ({code})"
            raise UsageError(f"{self._name()} {why} before it scored anything") from None
        if isinstance(said, str):
            raise UsageError(said)
        self.capacity, self._process, self._answers = said, process, {}
        self._reader = asyncio.create_task(self._read(process, self._answers))

    async def _read(self, process: asyncio.subprocess.Process, answers: dict[int, asyncio.Future[tuple[str, Any]]]) -> None:
        assert process.stdout is not None
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                number, *answer = await _next(process.stdout)
                if (waiting := answers.get(number)) is not None and not waiting.done():
                    waiting.set_result(tuple(answer))
        code = await process.wait()
        for waiting in answers.values():
            if not waiting.done():
                waiting.set_result(("failed", f"{self._name()} ended its process with exit code {code}"))

    def _name(self) -> str:
        from megatron_mmsr1.reward.base import source

        reward = from_settings(self._settings)
        return f"{source(reward)}: {type(reward).__name__}.parts"


async def _next(stream: asyncio.StreamReader) -> Any:
    size = struct.unpack("<Q", await stream.readexactly(8))[0]
    return pickle.loads(await stream.readexactly(size))
