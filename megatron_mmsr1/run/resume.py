"""What a resume needs, written and read: the actor's checkpoint with the place in the data and the search's snapshot.

A checkpoint is taken after a step and written while the next ones are made (`megatron/saving.py`); the ranks look at a step's
end, and between its rollouts and its training, whether all of them have written theirs. One is on its way at a time.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_mmsr1.checkpoints.manifest import named_latest
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.sampler import ResumableSampler
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.megatron.saving import HostMemory, NotWritten, Save
from megatron_mmsr1.run.kept import Kept
from megatron_mmsr1.run.saved import prune
from megatron_mmsr1.run.search_watch import SearchWatch

if TYPE_CHECKING:
    from megatron_mmsr1.megatron.actor import MegatronActor

BLOCKING, WRITING, FAILED = "seconds/checkpoint", "checkpoint_write_seconds", "checkpoint_failures"  # metrics


class Checkpoints:
    """OUTPUT/checkpoints. `sampler`: None for a run that draws no prompts (a cold start). `kept`: rollouts that are not yet
    trained on. `warn` and `info` say a line to the person, on rank 0. `failures`: of checkpoints in a row."""

    def __init__(
        self,
        cfg: RunConfig,
        actor: MegatronActor,
        sampler: ResumableSampler | None,
        kept: Kept,
        warn: Callable[[str], None],
        info: Callable[[str], None],
    ) -> None:
        self.cfg, self.actor, self.sampler, self.kept = cfg, actor, sampler, kept
        self.lead = actor.parallel.rank == 0
        self.warn, self.info = (warn, info) if self.lead else (_nothing, _nothing)
        self.directory = Path(cfg.output) / "checkpoints"
        self.source: Path | None = None  # what this life of the run began with
        self.failures = 0
        self._memory = HostMemory() if cfg.train.async_checkpoint else None
        self._saving: Save | None = None
        self._told: dict[str, float] = {}  # metrics since they were last asked for
        self._slow = False  # it was said

    def restore(self) -> int:
        """Collective. Load the latest checkpoint; returns the number of steps that are done, 0 without one."""
        if self.lead:
            for left in self.directory.glob(".*.part"):  # by a life that was killed while it wrote
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        self.source = self.actor.latest(self.directory)
        if self.source is None:
            return 0
        extra = self.actor.load(self.source)
        if self.sampler and extra["sampler"]:
            self.sampler.load_state_dict(extra["sampler"])
        self.kept.restore(self.source, extra.get("kept"))
        return int(extra["step"])

    def due(self, step: int) -> bool:
        """Whether a checkpoint is wanted after `step` steps: every `train.save_interval`, and at the end."""
        return step % self.cfg.train.save_interval == 0 or step == self.cfg.train.steps

    def save(self, step: int, watch: SearchWatch) -> None:
        """Collective. Begins with one of now, once the one before is written. Raises RunError for one failure in a row too
        many."""
        if self._saving is not None and not self._saving.done():
            if not self._slow:
                self.warn(
                    f"the disk is slow: the checkpoint {self._saving.directory.name} is still being written, and the run waits "
                    "for it before it takes the next one. Said once; seconds/checkpoint counts such waits"
                )
            self._slow = True
        self.settle(wait=True)
        started = time.monotonic()
        extra: dict[str, Any] = {
            "step": step,
            "sampler": self.sampler.state_dict() if self.sampler else None,
            "kept": self.kept.state(),
            "search": watch.identity() if self.lead else None,
            "engine": {"name": self.cfg.engine.name, "version": step},  # under which engines get these weights
        }
        target = self.directory / f"step_{step:06d}"
        try:
            self._saving = self.actor.begin_save(target, extra, beside=self.kept.write, memory=self._memory)
        except NotWritten as e:
            self._failed(e)
        self._waited(started)
        self.settle(wait=self._memory is None)

    def settle(self, *, wait: bool = False) -> None:
        """Collective. Puts a checkpoint in its place that every rank has written; with `wait`, when they have. Raises RunError
        for one failure in a row too many."""
        if self._saving is None or not (wait or self._saving.done()):
            return
        started = time.monotonic()
        saving, self._saving = self._saving, None
        try:
            done = saving.finish()
        except NotWritten as e:
            self._failed(e)
            return
        finally:
            self._waited(started)
        self.failures = 0
        self._told[WRITING] = done.seconds
        self.info(f"checkpoint {done.directory.name} is written: {done.bytes / 1e9:.2f} GB in {done.seconds:.1f} s")
        if self.lead:
            try:
                prune(self.cfg, done.directory)
            except (RunError, OSError) as e:  # a damaged evaluation, of which nothing is removed on a guess, or a disk's error
                self.warn(f"older checkpoints stay, which should be removed: {e}")

    def require(self, step: int) -> None:
        """Collective. Waits for the checkpoint of `step`. RunError unless it is there."""
        self.settle(wait=True)
        if self.failures:
            raise RunError(
                f"the run stands at step {step}, whose checkpoint was not written (the line before says why). {self._then()}"
            )

    def metrics(self) -> dict[str, float]:
        """Of a step: what was new since the last one, and the failures in a row."""
        told, self._told = self._told, {}
        return told | {FAILED: float(self.failures)}

    def _waited(self, since: float) -> None:
        self._told[BLOCKING] = self._told.get(BLOCKING, 0.0) + time.monotonic() - since

    def _failed(self, error: NotWritten) -> None:
        self.failures += 1
        most = self.cfg.train.checkpoint_failures
        if self.failures > most:
            raise RunError(
                f"{self.failures} checkpoints in a row were not written, more than train.checkpoint_failures={most}. The last: "
                f"{error}. {self._then()}"
            ) from error
        self.warn(f"{error}. The run goes on; the next checkpoint is tried when it is due. Make room. {self._then()}")

    def _then(self) -> str:
        name = named_latest(self.directory)
        return f"Until one is, the same command resumes from {name or 'the start'}"


def _nothing(line: str) -> None:
    pass
