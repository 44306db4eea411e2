"""Which trajectories a step trains on: those of a dump that fits, else new ones, dumped before anything is trained.

Whole trajectories stay with the leader that rolled them out, which writes them to a dump of its own. All ranks get their
outlines, and then each replica the trajectories that it trains on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.config.affects import fingerprint
from megatron_mmsr1.data.dataset import PromptDataset
from megatron_mmsr1.data.sampler import ResumableSampler
from megatron_mmsr1.data.store import ImageStore
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.rollout.dump import dump_files, read_meta, write_dump
from megatron_mmsr1.rollout.worker import RolloutWorker
from megatron_mmsr1.run.choice import Choice, choose, members_of
from megatron_mmsr1.run.kept import Kept
from megatron_mmsr1.run.ranks import Ranks
from megatron_mmsr1.run.rounds import ROUNDS, read_rounds, rounds_found
from megatron_mmsr1.run.search_watch import SearchWatch
from megatron_mmsr1.run.successes import REPLAYED
from megatron_mmsr1.run.trainable import scored
from megatron_mmsr1.shaping.refill import first_round, next_round
from megatron_mmsr1.trajectory import ToolStatus, Trajectory, group_name


class Rollouts:
    """A step's trajectories. `worker`: None on ranks that do not lead, and where nothing is generated. `kept`: what earlier
    steps left to train on.

    Of the last step: `generated` and `seconds`, whether its rollouts were made here or found, and how long that took; `local`,
    this leader's own, whole; `trainable`, outlines of what it may train on, on every rank; `metrics` of that choice.
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
        kept: Kept,
    ) -> None:
        self.cfg, self.ranks, self.dataset, self.sampler = cfg, ranks, dataset, sampler
        self.worker, self.watch, self.warn, self.kept = worker, watch, warn, kept
        self.directory = Path(cfg.output) / "rollouts"
        self.generated = False
        self.seconds = 0.0
        self.local: list[Trajectory] = []
        self.trainable: list[Trajectory] = []
        self.metrics: dict[str, float] = {}
        self._held: list[Trajectory] = []  # this leader's, whole: carried ones and `local`
        self._outlines: list[Trajectory] = []  # of all leaders' `_held`
        self._counts: list[int] = []
        self._short = False  # it was said that groups are missing

    def take(self, step: int) -> list[Trajectory]:
        """Collective. The outlines of all finished trajectories of this step on every rank: each leader's in the order of its
        prompts."""
        started = time.monotonic()
        ranks, leads = self.ranks, self.ranks.is_leader
        rounds = self._found(step)
        self.generated = not rounds
        indices = self.sampler.take(sum(rounds), step) if rounds else []
        while more := self._wanted(step, rounds, indices):
            drawn = self.sampler.take(more, step)
            self.local = [*self.local, *self._generate(drawn, step, before=indices)]
            rounds, indices = [*rounds, more], [*indices, *drawn]
            self._outline(step)
            if leads and self.cfg.logging.dump_rollouts:
                meta = {"weights": step, "config": fingerprint(self.cfg), "search": self.watch.identity(), ROUNDS: rounds}
                write_dump(self.directory, step, self.local, meta, part=ranks.dp_rank, parts=ranks.dp_size)
            ranks.barrier()  # nobody trains on what a crash of another leader could still lose
        self.watch.pauses_of_all(ranks.max([self.watch.paused_s])[0])
        fresh = self._fresh()
        self._choose(step, rounds, indices)
        self.seconds = time.monotonic() - started
        return fresh

    def shares(self, kept: Sequence[Trajectory], owners: Sequence[int]) -> list[Trajectory]:
        """Collective. `kept`, some of `trainable`, with those that this replica owns whole. `owners`: the data-parallel rank
        that trains on each of `kept`."""
        place = {id(t): i for i, t in enumerate(self._outlines)}
        places = [place[id(t)] for t in kept]
        wanted = [-1] * len(self._outlines)
        for i, owner in zip(places, owners, strict=True):
            wanted[i] = owner
        whole = self.ranks.distribute(self._held, self._counts, wanted)
        mine = [i for i, owner in enumerate(wanted) if owner == self.ranks.dp_rank]
        held = dict(zip(mine, whole, strict=True))
        return [held.get(i, t) for i, t in zip(places, kept, strict=True)]

    def _found(self, step: int) -> list[int]:
        """Collective. The rounds of this step whose rollouts were paid for already, which are read; none if none fit."""
        source = self.ranks.broadcast_object(self._source(step) if self.ranks.rank == 0 else None)
        self.local = []
        if source is None:
            return []
        rounds: list[int] = []
        if self.ranks.rank == 0:
            rounds = rounds_found(source, step, self.cfg.data.prompts_per_step)
        rounds = self.ranks.broadcast_object(rounds)
        if self.ranks.is_leader:
            self.local = read_rounds(source, step, rounds, self.ranks.dp_rank, self.ranks.dp_size)
        self._outline(step)
        # No reward at all is an outage's or a used-up budget's: roll out again, where there is somebody to.
        unscored = self.cfg.train.mode != "train-only" and all(t.reward is None for t in self._fresh())
        if self._pictures_gone(source, step) or unscored:
            self.local = []
            return []
        return rounds

    def _wanted(self, step: int, rounds: list[int], indices: list[int]) -> int:
        """How many prompts to draw next, over all leaders: the same on every rank, and where found rounds are gone on with."""
        wanted, shaping, size = self.cfg.data.prompts_per_step, self.cfg.shaping, self.ranks.dp_size
        if not rounds:
            return first_round(wanted, len(self.kept.groups), size) if shaping.refill.rounds else wanted
        fresh = self._fresh()
        # Where nothing has a reward, further rounds would have none; where a budget refuses searches, the step's own cap too,
        # only questions that need none would be answered.
        refused = any(c.status is ToolStatus.BUDGET for t in fresh for c in t.tool_calls)
        stop = self.cfg.train.mode == "train-only" or not scored(fresh) or refused
        if len(rounds) > shaping.refill.rounds or stop:
            return 0
        live = self._choice(step, indices).live
        return next_round(wanted, len(self.kept.groups) + live, sum(rounds), live, size)

    def _choice(self, step: int, indices: list[int]) -> Choice:
        drawn = [group_name(step, i, copy) for i, copy in zip(*share(indices, 0, 1), strict=True)]
        # A replayed dump may be of other data: its groups then come as they lie in it.
        own = dict.fromkeys([*drawn, *(t.group_id for t in self._fresh())])
        return choose(self.cfg, self.kept.groups, own, self._outlines, self.cfg.data.prompts_per_step)

    def _choose(self, step: int, rounds: list[int], indices: list[int]) -> None:
        """What the step trains on, and what is kept for the next."""
        replay, refill, wanted = self.kept.successes, self.cfg.shaping.refill, self.cfg.data.prompts_per_step
        choice = self._choice(step, indices) if refill.rounds else None
        self.trainable = members_of(choice.chosen, self._outlines) if choice else scored(self._outlines)
        self.metrics = {}
        if replay.on:
            joined = [t for t in self._outlines if REPLAYED in t.extra and t.group_id not in self.kept.groups]
            self.metrics["shaping/replayed"] = len(joined)
            replay.learn(step, self._fresh(), self.local)
        if self.kept.on:
            ages = [float(step - t.step) for t in self.trainable if t.step is not None]
            self.metrics["shaping/staleness"] = sum(ages) / max(len(ages), 1)
        if choice is None:
            return
        self.metrics |= {
            "shaping/rounds": len(rounds),
            "shaping/prompts": sum(rounds),
            "shaping/live_share": choice.live / max(sum(rounds), 1),
            "shaping/carried_in": len(self.kept.groups),
            "shaping/carried_out": len(choice.left),
            "shaping/short": wanted - len(choice.chosen),
        }
        self.kept.keep(choice.left, scored(self._held))
        if len(choice.chosen) < wanted and not self._short and self.ranks.rank == 0:
            self._short = True
            self.warn(
                f"step {step}: {len(choice.chosen)} of {wanted} groups have variance after {len(rounds)} rounds "
                f"(shaping.refill.rounds={refill.rounds}): it trains on those. Said once; shaping/short counts"
            )

    def _fresh(self) -> list[Trajectory]:
        """Of the outlines, the step's own."""
        carried = set(self.kept.groups)
        return [t for t in self._outlines if t.group_id not in carried and REPLAYED not in t.extra]

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

    def _outline(self, step: int) -> None:
        """Collective. What there is to choose from, with the kept successes that join the step's groups."""
        self._gather([*self.kept.carried, *self.local])
        if self.kept.successes.on:
            self._gather([*self._held, *self.kept.successes.joining(step, self._fresh())])

    def _gather(self, held: list[Trajectory]) -> None:
        self._held = held
        per_leader = self.ranks.gather_from_leaders([[t.outline() for t in self._held]])
        self._counts = [len(part) for part in per_leader]
        self._outlines = [t for part in per_leader for t in part]

    def _generate(self, indices: list[int], step: int, before: Sequence[int]) -> list[Trajectory]:
        """This leader's share of a round; nothing on the other ranks. `before`: the rows of the step's earlier rounds."""
        if self.worker is None:
            return []
        mine, copies = share(indices, self.ranks.dp_rank, self.ranks.dp_size, before)
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


def share(indices: Sequence[int], dp_rank: int, dp_size: int, before: Sequence[int] = ()) -> tuple[list[int], list[int]]:
    """(the dataset rows that this leader rolls out, how often each of them came before in the whole step).

    A step may hold a row twice where an epoch ends: its copies are groups of their own, also on different leaders and in
    different rounds; `before`: the rows of earlier rounds.
    """
    seen = dict(Counter(before))
    copies = []
    for i in indices:
        copies.append(seen.get(i, 0))
        seen[i] = copies[-1] + 1
    per = len(indices) // dp_size
    mine = slice(dp_rank * per, (dp_rank + 1) * per)
    return list(indices[mine]), copies[mine]
