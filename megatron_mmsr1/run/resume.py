"""What a resume needs, written and read: the actor's checkpoint with the place in the data and the search's snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.sampler import ResumableSampler
from megatron_mmsr1.run.kept import Kept
from megatron_mmsr1.run.search_watch import SearchWatch
from megatron_mmsr1.run.weights import prune

if TYPE_CHECKING:
    from megatron_mmsr1.megatron.actor import MegatronActor


class Checkpoints:
    """OUTPUT/checkpoints. `sampler`: None for a run that draws no prompts (a cold start). `kept`: rollouts that are not yet
    trained on."""

    def __init__(self, cfg: RunConfig, actor: MegatronActor, sampler: ResumableSampler | None, kept: Kept) -> None:
        self.cfg, self.actor, self.sampler, self.kept = cfg, actor, sampler, kept
        self.directory = Path(cfg.output) / "checkpoints"
        self.source: Path | None = None  # what this life of the run began with

    def restore(self) -> int:
        """Collective. Load the latest checkpoint; returns the number of steps that are done, 0 without one."""
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
        """Collective."""
        lead = self.actor.parallel.rank == 0
        extra: dict[str, Any] = {
            "step": step,
            "sampler": self.sampler.state_dict() if self.sampler else None,
            "kept": self.kept.state(),
            "search": watch.identity() if lead else None,
        }
        target = self.directory / f"step_{step:06d}"
        self.actor.save(target, extra, beside=self.kept.write)
        if lead:
            prune(self.directory, "step_*", keep=self.cfg.train.keep_checkpoints, current=target)
        self.actor.parallel.barrier()
