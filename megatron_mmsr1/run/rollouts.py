"""Which trajectories a step trains on: those of a dump that fits, else new ones, dumped before anything is trained.

Whole trajectories stay with the leader that rolled them out, which writes them to a dump of its own. All ranks get their
outlines, and then each replica the trajectories that it trains on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.config.affects import fingerprint
from megatron_mmsr1.data.dataset import PromptDataset
from megatron_mmsr1.data.sampler import ResumableSampler
from megatron_mmsr1.data.store import ImageStore
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.rollout.dump import dump_files, read_meta, read_share, write_dump
from megatron_mmsr1.rollout.worker import RolloutWorker
from megatron_mmsr1.run.ranks import Ranks
from megatron_mmsr1.run.search_watch import SearchWatch
from megatron_mmsr1.trajectory import Trajectory


class Rollouts:
    """A step's trajectories. `worker`: None on ranks that do not lead, and where nothing is generated.

    `generated` and `seconds` tell of the last step: whether its rollouts were made here or found, and how long that took.
    `local` holds this leader's own of that step, whole.
    """

    def __init__(
        self,
        cfg: RunConfig,
        ranks: Ranks,
        dataset: PromptDataset,
        sampler: ResumableSampler,
        worker: RolloutWorker | None,
        watch: SearchWatch,
        warn: Callable[[str], None],
    ) -> None:
        self.cfg, self.ranks, self.dataset, self.sampler = cfg, ranks, dataset, sampler
        self.worker, self.watch, self.warn = worker, watch, warn
        self.directory = Path(cfg.output) / "rollouts"
        self.generated = False
        self.seconds = 0.0
        self.local: list[Trajectory] = []
        self._outlines: list[Trajectory] = []
        self._counts: list[int] = []

    def take(self, step: int) -> list[Trajectory]:
        """Collective. The outlines of all finished trajectories of this step, in the order of its prompts, on every rank."""
        started = time.monotonic()
        indices = self.sampler.take(self.cfg.data.prompts_per_step)
        ranks, leads = self.ranks, self.ranks.is_leader
        source = ranks.broadcast_object(self._source(step) if ranks.rank == 0 else None)
        self.generated = source is None
        if source is not None:
            self.local = read_share(source, step, ranks.dp_rank, ranks.dp_size) if leads else []
            self._outline()
            # No reward at all is an outage's or a used-up budget's: roll out again, where there is somebody to.
            unscored = self.cfg.train.mode != "train-only" and all(t.reward is None for t in self._outlines)
            self.generated = self._pictures_gone(source, step) or unscored
        if self.generated:
            self.local = self._generate(indices, step)
            self._outline()
            if leads and self.cfg.logging.dump_rollouts:
                meta = {"weights": step, "config": fingerprint(self.cfg), "search": self.watch.identity()}
                write_dump(self.directory, step, self.local, meta, part=ranks.dp_rank, parts=ranks.dp_size)
            ranks.barrier()  # nobody trains on what a crash of another leader could still lose
        self.watch.pauses_of_all(ranks.max([self.watch.paused_s])[0])
        self.seconds = time.monotonic() - started
        return self._outlines

    def shares(self, kept: Sequence[Trajectory], owners: Sequence[int]) -> list[Trajectory]:
        """Collective. `kept`, some of the last step's outlines, with those that this replica owns whole. `owners`: the
        data-parallel rank that trains on each of `kept`."""
        place = {id(t): i for i, t in enumerate(self._outlines)}
        places = [place[id(t)] for t in kept]
        wanted = [-1] * len(self._outlines)
        for i, owner in zip(places, owners, strict=True):
            wanted[i] = owner
        whole = self.ranks.distribute(self.local, self._counts, wanted)
        mine = [i for i, owner in enumerate(wanted) if owner == self.ranks.dp_rank]
        held = dict(zip(mine, whole, strict=True))
        return [held.get(i, t) for i, t in zip(places, kept, strict=True)]

    def _pictures_gone(self, source: Path, step: int) -> bool:
        """Collective. Whether pictures of the rollouts just read are missing beside them, so that the step must be rolled out
        again; RunError where nobody can."""
        images = ImageStore(source.parent / "images")
        wanted = {i.sha256 for t in self.local for i in t.images}
        gone = int(self.ranks.max([float(sum(sha not in images for sha in wanted))])[0])
        if not gone:
            return False
        what = f"step {step}: {gone} pictures of its rollouts in {source} are missing from {images.root}"
        if self.cfg.train.mode == "train-only":
            raise RunError(f"{what}: copy images/ of that run there, or name the rollouts/ of a run that has its images/")
        if self.ranks.rank == 0:
            self.warn(f"{what}: the step is rolled out again")
        return True

    def _outline(self) -> None:
        per_leader = self.ranks.gather_from_leaders([[t.outline() for t in self.local]])
        self._counts = [len(part) for part in per_leader]
        self._outlines = [t for part in per_leader for t in part]

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

    def _source(self, step: int) -> Path | None:
        """Where rollouts of this step are that were paid for already: those of the run being replayed, or of this run's own
        life before it was killed. None if there are none that fit."""
        if self.cfg.train.mode == "train-only":
            return Path(self.cfg.train.replay or ".")
        files = dump_files(self.directory, step)
        fits = bool(files) and all(read_meta(f).get("config") == fingerprint(self.cfg) for f in files)
        return self.directory if fits else None


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
