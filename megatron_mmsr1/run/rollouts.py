"""Which trajectories a step trains on: those of a dump that fits, else new ones, dumped before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.config.affects import fingerprint
from megatron_mmsr1.data.dataset import PromptDataset
from megatron_mmsr1.data.sampler import ResumableSampler
from megatron_mmsr1.rollout.dump import dump_path, read_dump, write_dump
from megatron_mmsr1.rollout.worker import RolloutWorker
from megatron_mmsr1.run.ranks import Ranks
from megatron_mmsr1.run.search_watch import SearchWatch
from megatron_mmsr1.trajectory import Trajectory


class Rollouts:
    """A step's trajectories, the same on every rank. `worker`: None on ranks that do not lead, and where nothing is generated.

    `generated` and `seconds` tell of the last step: whether its rollouts were made here or found, and how long that took.
    """

    def __init__(
        self,
        cfg: RunConfig,
        ranks: Ranks,
        dataset: PromptDataset,
        sampler: ResumableSampler,
        worker: RolloutWorker | None,
        watch: SearchWatch,
    ) -> None:
        self.cfg, self.ranks, self.dataset, self.sampler = cfg, ranks, dataset, sampler
        self.worker, self.watch = worker, watch
        self.directory = Path(cfg.output) / "rollouts"
        self.generated = False
        self.seconds = 0.0

    def take(self, step: int) -> list[Trajectory]:
        """Collective. All ranks' finished trajectories of this step, in the order of its prompts."""
        started = time.monotonic()
        indices = self.sampler.take(self.cfg.data.prompts_per_step)
        lead = self.ranks.rank == 0
        stored = self.ranks.broadcast_object(self._stored(step) if lead else [])
        self.generated = not stored
        trajectories = stored or self.ranks.gather_from_leaders(self._generate(indices, step))
        if self.generated and lead and self.cfg.logging.dump_rollouts:
            meta = {"weights": step, "config": fingerprint(self.cfg), "search": self.watch.identity()}
            write_dump(self.directory, step, trajectories, meta)
        self.seconds = time.monotonic() - started
        return trajectories

    def _generate(self, indices: list[int], step: int) -> list[Trajectory]:
        """This leader's share; nothing on the other ranks."""
        if self.worker is None:
            return []
        mine, copies = share(indices, self.ranks.dp_rank, self.ranks.dp_size)
        return self.worker.generate(
            [self.dataset[i] for i in mine],
            step=step,
            indices=mine,
            copies=copies,
            weight_version=step,
            group_size=self.cfg.data.group_size,
            progress=self.watch.heard,
        )

    def _stored(self, step: int) -> list[Trajectory]:
        """Rollouts already paid for: of the run being replayed, or of this run's own life before it was killed."""
        if self.cfg.train.mode == "train-only":
            return read_dump(Path(self.cfg.train.replay or "."), step)[0]
        if not dump_path(self.directory, step).exists():
            return []
        trajectories, meta = read_dump(self.directory, step)
        whole = any(t.reward is not None for t in trajectories)  # else an outage's or a used-up budget's: roll out again
        return trajectories if whole and meta.get("config") == fingerprint(self.cfg) else []


def share(indices: Sequence[int], dp_rank: int, dp_size: int) -> tuple[list[int], list[int]]:
    """(the dataset rows that this leader rolls out, how often each of them came before in the whole step).

    A step may hold a row twice where an epoch ends: its copies are groups of their own, also on different leaders.
    """
    seen: dict[int, int] = {}
    copies = []
    for i in indices:
        copies.append(seen.get(i, 0))
        seen[i] = copies[-1] + 1
    per = len(indices) // dp_size
    mine = slice(dp_rank * per, (dp_rank + 1) * per)
    return list(indices[mine]), copies[mine]
