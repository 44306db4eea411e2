"""A batch of prompts, all their trajectories in flight at once, each scored where it ends."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.images import ImageError
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.rollout.agent import Opening, Seeds, open_group, run_trajectory
from megatron_mmsr1.rollout.context import Context
from megatron_mmsr1.rollout.engines.base import Client
from megatron_mmsr1.rollout.jobs import Job, Progress
from megatron_mmsr1.rollout.scoring import ERROR, Scoring
from megatron_mmsr1.rollout.throttle import Throttle
from megatron_mmsr1.trajectory import Status, Trajectory, group_name

REPORT_S = 0.25
WAITING_S = 1.0


class Batch:
    """One job. `report` gets its progress."""

    def __init__(
        self,
        context: Context,
        engine: Client,
        cfg: RunConfig,
        job: Job,
        report: Callable[[Progress], None],
        scoring: Scoring,
        throttle: Throttle | None = None,
    ) -> None:
        self._scoring, self._unscored = scoring, 0
        self._throttle = throttle
        if throttle is not None:
            throttle.on_change = lambda: self._tell(force=True)
        self._context, self._engine, self._cfg, self._job, self._report = context, engine, cfg, job, report
        self._slots = asyncio.Semaphore(cfg.rollout.concurrency)
        self._done = self._tokens = 0
        self._statuses: Counter[str] = Counter()
        self._started = self._reported = time.monotonic()

    async def run(self) -> list[Trajectory]:
        """Prompt by prompt, sample by sample. The first error ends the rest."""
        self._engine.expect(self._job.weight_version)
        waiting = asyncio.get_running_loop().create_task(self._tell_of_waiting())
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(self._one(place, sample, opening))
                    for place, opening in enumerate(self._openings(tasks))
                    for sample in range(self._job.group_size)
                ]
        except ExceptionGroup as group:  # the first that a person can act on, else the bug as it is
            raise next((e for e in group.exceptions if isinstance(e, UsageError | RunError)), group) from None
        finally:
            waiting.cancel()
        done = [task.result() for task in running]
        self._tell(force=True)
        return done

    async def _tell_of_waiting(self) -> None:
        """Progress also while nothing ends: an engine that starts, or compiles, is silent for long."""
        while True:
            await asyncio.sleep(WAITING_S)
            self._tell()

    def _openings(self, tasks: asyncio.TaskGroup) -> list[asyncio.Task[Opening]]:
        return [tasks.create_task(self._open(place)) for place in range(len(self._job.prompts))]

    async def _open(self, place: int) -> Opening:
        prompt = self._job.prompts[place]
        try:
            return await open_group(self._context, prompt)
        except ImageError as e:
            raise UsageError(f"prompt {prompt.prompt_id} (row {self._job.indices[place]}): {e}") from e

    async def _one(self, place: int, sample: int, opening: asyncio.Task[Opening]) -> Trajectory:
        job, cfg = self._job, self._cfg
        index = job.indices[place]
        # Should one step hold a prompt twice, its copies are groups of their own, with randomness of their own.
        copy = job.indices[:place].count(index) if job.copies is None else job.copies[place]
        group = group_name(job.step, index, copy)
        async with self._slots:
            trajectory = await run_trajectory(
                self._context,
                self._engine.conversation(group),
                await opening,
                seeds=Seeds(cfg.seed, job.step, index, sample + copy * job.group_size),
                group_id=group,
                temperature=job.temperature,
            )
        trajectory.sample_index = sample
        trajectory.step = job.step if job.step >= 0 else None  # an evaluation's is negative
        self._check_version(trajectory)
        await self._scoring.score(trajectory)
        self._count(trajectory)
        return trajectory

    def _check_version(self, t: Trajectory) -> None:
        want = self._job.weight_version
        if want is None:
            return
        found = {v for v, sampled in zip(t.weight_versions, t.loss_mask, strict=True) if sampled} - {want}
        if found:
            raise RunError(
                f"step {self._job.step}: an engine sampled with weights of version {sorted(found)}, not {want}: it was "
                "restarted, or another run updates it; restart the run, which publishes its weights again"
            )

    def _count(self, t: Trajectory) -> None:
        self._done += 1
        self._tokens += t.sampled_tokens
        self._statuses[str(t.status)] += 1
        if t.status is Status.ENGINE_ERROR and self._statuses[str(Status.ENGINE_ERROR)] == 1:
            print(f"step {self._job.step}: {t.extra.get('error')}", flush=True)
        if ERROR in t.extra:
            self._unscored += 1
            if self._unscored == 1:
                print(f"step {self._job.step}: a trajectory has no reward: {t.extra[ERROR]}", flush=True)
        self._tell()

    def _tell(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if force or now - self._reported >= REPORT_S:
            self._reported = now
            total = len(self._job.prompts) * self._job.group_size
            p = Progress(self._done, total, now - self._started, self._tokens, dict(self._statuses))
            if (throttle := self._throttle) is not None:
                p = replace(p, paused=throttle.paused, paused_s=throttle.paused_s, failing=throttle.failing)
            self._report(p)
