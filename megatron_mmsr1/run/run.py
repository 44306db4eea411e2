"""A run: the parts that the loop of train.py acts on, put together. Every rank holds one.

Ranks that lead a data-parallel replica also hold a rollout worker; rank 0 also writes logs, dumps and weights. Nothing here
says torch.cuda or imports megatron.core: that is megatron/'s.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from torch import Tensor

from megatron_mmsr1.algorithm.corrections.none import NoCorrection
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.dataset import PromptDataset
from megatron_mmsr1.data.images import ImageStore
from megatron_mmsr1.data.usable_rows import usable_rows
from megatron_mmsr1.errors import Interrupted, RunError, UsageError
from megatron_mmsr1.megatron.actor import MegatronActor
from megatron_mmsr1.megatron.attention.choice import SLOW, chosen
from megatron_mmsr1.publish import model_card
from megatron_mmsr1.reward import min_success
from megatron_mmsr1.rollout.worker import RolloutWorker
from megatron_mmsr1.run.demonstrations import Source, open_source
from megatron_mmsr1.run.directory import ROWS
from megatron_mmsr1.run.evaluations import Evaluations
from megatron_mmsr1.run.facts import facts
from megatron_mmsr1.run.kept import Kept
from megatron_mmsr1.run.lock import RunLock
from megatron_mmsr1.run.logs import RunLog
from megatron_mmsr1.run.order import sampler_of
from megatron_mmsr1.run.phases import Phases
from megatron_mmsr1.run.resume import Checkpoints
from megatron_mmsr1.run.rollouts import Rollouts
from megatron_mmsr1.run.search_watch import SearchWatch, budget_reached
from megatron_mmsr1.run.step_log import StepLog
from megatron_mmsr1.run.stop import Stop
from megatron_mmsr1.run.trainable import require_rewards, require_something, scored
from megatron_mmsr1.run.weights import Weights, lend_first
from megatron_mmsr1.shaping.overlong import filtered, metrics, shaped_reward
from megatron_mmsr1.trajectory import Trajectory


class Run:
    """Opens where an earlier run of the same output directory stopped: at its latest checkpoint, else at step 0."""

    def __init__(self, cfg: RunConfig, engines: list[str], search: str | None, lock: RunLock | None = None) -> None:
        self.cfg, self.out, self.lock = cfg, Path(cfg.output), lock
        grpo = not cfg.algorithm.supervised
        # A replayed dump refers to the pictures of the run that made it.
        home = Path(cfg.train.replay).parent if cfg.train.mode == "train-only" and cfg.train.replay else self.out
        self.images = ImageStore(home / "images")
        if cfg.placement.colocated and engines and int(os.environ.get("RANK", "0")) == 0:
            lend_first(cfg, engines)  # the other ranks wait for this one, without which there are no process groups
        self.actor = MegatronActor(cfg, self.images, total_steps=cfg.train.steps)
        self.parallel = self.actor.parallel
        self.lead = self.parallel.rank == 0
        self.phases = Phases(self.out, self.parallel.rank)
        self.samples = grpo and cfg.train.mode == "full"  # from engines
        self.shaping: dict[str, float] = {}  # metrics of the step: what was changed before the advantages
        self.spent = ""  # which budget of the search is used up
        self.source: Source | None = None
        dataset = self._dataset() if grpo else None
        sampler = sampler_of(cfg, dataset) if dataset is not None else None
        kept = Kept(cfg, self.parallel, home / "images")
        self.checkpoints = Checkpoints(cfg, self.actor, sampler, kept, self._warn, self._info)
        self.step = self.checkpoints.restore()
        attends = chosen(cfg, self.actor.model.config)
        self.logger = RunLog(self.out, cfg, resume_step=self.step, attention=attends.reason) if self.lead else None
        if self.logger and attends.slow:
            self.logger.warn(f"attention: {attends.reason}. {SLOW}")
        elif self.logger:
            self.logger.info(f"attention: {attends.reason}")
        if self.logger and self.checkpoints.source:
            self.logger.info(f"resuming at step {self.step} from {self.checkpoints.source}")
        self.watch = SearchWatch(search, cfg, self._warn, self._info, beat=self.phases.beat)
        self.worker: RolloutWorker | None = None
        if self.samples and self.parallel.is_leader:
            self.worker = RolloutWorker(cfg, engines, search, self.out / "images")
        self.rollouts: Rollouts | None = None
        if dataset is not None and sampler is not None:
            self.rollouts = Rollouts(cfg, self.parallel, dataset, sampler, self.worker, self.watch, self._warn, kept)
        if cfg.shaping.off_policy and isinstance(self.actor.algorithm.correction, NoCorrection) and self.lead:
            self._warn(
                "shaping trains on rollouts of older weights too, and algorithm.correction is none: tis, icepop or mis "
                "accounts for what the policy has moved since"
            )
        self.weights = Weights(cfg, self.actor, engines)
        self.evaluations = Evaluations(cfg, self.parallel, self.worker, self.actor.weights_id, self.watch, self.logger)
        self.step_log = StepLog(cfg, self.logger, self.watch, skipped_rows=0 if dataset is None else dataset.skipped)
        self.publish(self.step)  # whatever the engines hold: they may be somebody else's, or have served another run

    # ------------------------------------------------------------------------------------------------------- the steps
    def rollout(self, step: int) -> list[Trajectory]:
        """The outlines of all ranks' finished trajectories of this step, the same list on every rank."""
        assert self.rollouts is not None
        self.phases.enter("rollout", step)
        outlines = self.rollouts.take(step)
        self.checkpoints.settle()
        return outlines

    def shares(self, kept: list[Trajectory]) -> list[Trajectory]:
        """The same list, in which those that this rank trains on are whole; the others stay outlines."""
        assert self.rollouts is not None
        self.phases.enter("training", self.step)
        if self.cfg.placement.colocated and self.samples:
            self.weights.lend_memory()
        return self.rollouts.shares(kept, self.actor.owners(kept))

    def advantages(self, trajectories: list[Trajectory]) -> tuple[list[Trajectory], list[Tensor]]:
        """What the step trains on. Infrastructure failures are left out before the group is normalised, so that an outage
        is never charged to the model; and so are groups without variance, where nothing gives their tokens a
        gradient (`Composition.select`), and, after the advantages are known, what `shaping.overlong.filter` leaves out.
        """
        assert self.rollouts is not None
        self.spent = budget_reached(trajectories)
        made = scored(trajectories)
        if not made and self.spent:
            raise RunError(self._stopped())
        require_something(made, trajectories, self.step, self.out)
        require_rewards(trajectories, self.step, min_success(self.cfg.reward))
        good = self.rollouts.trainable
        rewards, groups = [shaped_reward(t, self.cfg) for t in good], [t.group_id for t in good]
        kept, values = self.actor.algorithm.select(rewards, groups, [facts(t) for t in good])
        self.shaping = self.rollouts.metrics | metrics(made, self.cfg)
        trained = [(good[i], v) for i, v in zip(kept, values, strict=True) if not filtered(good[i], self.cfg)]
        return [t for t, _ in trained], [v for _, v in trained]

    def demonstrations(self, step: int) -> list[Trajectory]:
        """The cold start's examples of this step, the same list on every rank (the source is seeded and rewinds by step)."""
        self.phases.enter("training", step)
        self.source = self.source or open_source(self.cfg, self.images)
        return self.source.batch(step, self.cfg.sft.examples_per_step)

    def publish(self, version: int) -> None:
        """The weights into every engine under this version, where there are engines."""
        if self.samples:
            self.phases.enter("weight update", self.step)
            if self.cfg.placement.colocated and self.evaluations.wants(version):
                self.actor.weights_id()  # while they are there
            before = self.weights.absent
            self.weights.publish(version)
            if self.weights.failed_first:
                self._warn(f"weights {version} took a second try. The first: {self.weights.failed_first}")
            for url in set(self.weights.absent) - set(before):
                self._warn(
                    f"nothing answers at the engine {url}: it has no part in weights {version}; the run goes on without it"
                )
            for url in set(before) - set(self.weights.absent):
                self._info(f"the engine {url} is back, with weights {version}")

    def log(self, step: int, metrics: dict[str, float], trajectories: list[Trajectory], trained: list[Trajectory]) -> None:
        """A finished step: its row in the logs."""
        if self.lock:
            self.lock.check()
        self.step = step + 1
        made = self.rollouts is not None and self.rollouts.generated
        seconds = {"rollout": self.rollouts.seconds} if self.rollouts else {}
        seconds |= {"sync": self.weights.seconds} if self.weights.seconds else {}  # of the publication before this step
        fresh = set(map(id, trajectories))
        own = sum(id(t) in fresh for t in trained)
        shown = self.rollouts.local if self.rollouts else []
        metrics |= self.shaping | self.checkpoints.metrics()
        metrics |= {"engines/absent": float(len(self.weights.absent))} if self.weights.transport else {}
        self.step_log.write(step, metrics, trajectories, trained=own, seconds=seconds, generated=made, shown=shown)

    def evaluate(self, name: str, *, at: int) -> None:
        """Held-out questions, if the run stands at step `at`."""
        if self.step == at:
            self.checkpoints.settle(wait=True)
            self.phases.enter(f"evaluation {name}", at)
            self.evaluations.evaluate(name, step=at)

    def evaluate_if_due(self, step: int) -> None:
        if self.evaluations.due(step):
            self.checkpoints.settle(wait=True)
        self.phases.enter("evaluation", step)
        self.evaluations.evaluate_if_due(step)

    # ------------------------------------------------------------------------------------------------------ checkpoints
    def save_if_due(self, step: int) -> None:
        """A checkpoint begun where one is due, and one that is written put in its place. RunError, with a checkpoint written
        first, once the search budget is used up or the person asked to stop."""
        self.checkpoints.settle()
        asked = self.parallel.broadcast_object(Stop(self.out).requested if self.lead else False)
        if self.checkpoints.due(step) or self.spent or asked:
            self.phases.enter("checkpoint", step)
            self.checkpoints.save(step, self.watch)
        if self.spent or asked or step == self.cfg.train.steps:
            self.checkpoints.require(step)
        if self.spent:
            raise RunError(self._stopped())
        if asked and step < self.cfg.train.steps:
            raise Interrupted(f"stopped after step {step}, whose checkpoint is written: the same command goes on from there")

    def finish(self) -> None:
        """The trained model as a Hugging Face checkpoint, with its page and serving.yaml."""
        self.phases.enter("export", self.step)
        if self.cfg.placement.colocated and self.samples:
            self.weights.lend_memory()
        self.actor.export(self.out / "model", step=self.step)
        if self.lead:
            try:
                model_card.write(self.out, self.out / "model", step=self.step)
            except (UsageError, RunError, OSError) as e:  # the weights are what matters; mmsr1 export writes the page
                self._warn(f"{self.out}/model has no page: {e}")
        self.parallel.barrier()

    # --------------------------------------------------------------------------------------------------------- helpers
    def _dataset(self) -> PromptDataset:
        """Where bad rows are skipped, one rank decodes all pictures to find them, once a run."""
        d, found = self.cfg.data, None
        if d.bad_rows == "skip":
            found = self.parallel.broadcast_object(usable_rows(d.train, self.out / ROWS) if self.lead else [])
        return PromptDataset(d.train, bad_rows=d.bad_rows, usable=found)

    def _stopped(self) -> str:
        return (
            f"the search budget is used up ({self.spent}): training on without search would teach not to search. Raise it, or "
            "wait for the next day if it is the day's; the same command resumes the run"
        )

    def _warn(self, line: str) -> None:
        if self.logger:
            self.logger.warn(line)
        else:
            print(f"rank {self.parallel.rank}: warning: {line}", flush=True)  # into the ranks' log

    def _info(self, line: str) -> None:
        if self.logger:
            self.logger.info(line)
        else:
            print(f"rank {self.parallel.rank}: {line}", flush=True)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self.worker is not None:
            with suppress(RunError):  # the run's own error, if any, is the one to show
                self.worker.close()
        if self.logger:
            self.logger.close()
