"""A run: what the loop of train.py acts on. Owns the actor, the rollout worker, the logs and everything that a resume needs.

Every rank holds one. Ranks that lead a data-parallel replica also hold a rollout worker; rank 0 also writes logs, dumps and
weights. Nothing here says torch.cuda or imports megatron.core: that is megatron/'s.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_mmsr1.algorithm.advantages import group_normalized
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.config.affects import fingerprint
from megatron_mmsr1.data.dataset import Prompt, PromptDataset
from megatron_mmsr1.data.images import ImageStore
from megatron_mmsr1.data.sampler import ResumableSampler
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.eval.evaluate import evaluate_with
from megatron_mmsr1.eval.metrics import rollout_metrics, throughput
from megatron_mmsr1.megatron.actor import MegatronActor
from megatron_mmsr1.publish import model_card
from megatron_mmsr1.rollout.dump import dump_path, read_dump, write_dump
from megatron_mmsr1.rollout.worker import RolloutWorker
from megatron_mmsr1.run.logs import RunLog
from megatron_mmsr1.run.search_watch import SearchWatch, budget_reached
from megatron_mmsr1.sync.disk import DiskSync
from megatron_mmsr1.trajectory import Trajectory

SAMPLES = 4  # trajectories a step in the table of samples


class Run:
    """Opens where an earlier run of the same output directory stopped: at its latest checkpoint, else at step 0."""

    def __init__(self, cfg: RunConfig, engines: list[str], search: str | None) -> None:
        self.cfg = cfg
        self.out = Path(cfg.output)
        self.engines = engines
        # A replayed dump refers to the pictures of the run that made it.
        home = Path(cfg.train.replay).parent if cfg.train.mode == "train-only" and cfg.train.replay else self.out
        self.images = ImageStore(home / "images")
        self.actor = MegatronActor(cfg, self.images, total_steps=cfg.train.steps)
        self.parallel = self.actor.parallel
        self.lead = self.parallel.rank == 0
        self.seconds: dict[str, float] = {}
        self.generated = False  # whether this step's rollouts were made here, or found
        self.worker: RolloutWorker | None = None
        self.dataset: PromptDataset | None = None
        self.sampler: ResumableSampler | None = None
        self._source: Any = None
        if cfg.algorithm.name == "grpo":
            self.dataset = PromptDataset(cfg.data.train, bad_rows=cfg.data.bad_rows)
            self.sampler = ResumableSampler(len(self.dataset), seed=cfg.seed, shuffle=cfg.data.shuffle)
        self.step = self._resume()
        if cfg.algorithm.name == "grpo" and cfg.train.mode == "full":
            if self.parallel.is_leader:
                self.worker = RolloutWorker(cfg, engines, search, self.out / "images")
            if self.step:
                self.publish(self.step)  # the engines started from the model of step 0
        self.logger = RunLog(self.out, cfg, resume_step=self.step) if self.lead else None
        self.watch = SearchWatch(search, cfg, self._warn, self._info)
        self.spent = ""  # which budget of the search is used up

    # ------------------------------------------------------------------------------------------------------- the steps
    def rollout(self, step: int) -> list[Trajectory]:
        """All ranks' finished trajectories of this step, the same list on every rank."""
        assert self.sampler is not None and self.dataset is not None
        started = time.monotonic()
        indices = self.sampler.take(self.cfg.data.prompts_per_step)
        found = self._stored_rollouts(step) if self.lead else []
        stored = self.parallel.broadcast_object(found)
        self.generated = not stored
        if stored:
            trajectories = stored
        else:
            local: list[Trajectory] = []
            if self.worker is not None:
                per = len(indices) // self.parallel.dp_size
                mine = indices[self.parallel.dp_rank * per : (self.parallel.dp_rank + 1) * per]
                local = self._generate(mine, step)
            trajectories = self.parallel.gather_from_leaders(local)
            if self.lead and self.cfg.logging.dump_rollouts:
                meta = {"weights": step, "config": fingerprint(self.cfg), "search": self.watch.identity()}
                write_dump(self.out / "rollouts", step, trajectories, meta)
        self.seconds["rollout"] = time.monotonic() - started
        return trajectories

    def advantages(self, trajectories: list[Trajectory]) -> tuple[list[Trajectory], list[float]]:
        """What the step trains on. Infrastructure failures are left out before the group is normalised, so that an outage
        is never charged to the model; groups without variance carry no gradient and are left out when KL does not need them.
        """
        a = self.cfg.algorithm
        good = [t for t in trajectories if t.reward is not None and not t.infrastructure_failure]
        self.spent = budget_reached(trajectories)
        if not good and self.spent:
            raise RunError(self._stopped())
        if not good:
            raise RunError(
                f"all {len(trajectories)} trajectories of step {self.step} failed in the engine or the search server; "
                f"see {self.out}/logs and the rollout dump"
            )
        values = group_normalized(
            [float(t.reward or 0.0) for t in good], [t.group_id for t in good], divide_by_std=a.divide_by_std
        ).tolist()
        if a.kl_coef or a.entropy_coef:
            return good, values
        live = [(t, v) for t, v in zip(good, values, strict=True) if v != 0.0]
        return [t for t, _ in live], [v for _, v in live]

    def demonstrations(self, step: int) -> list[Trajectory]:
        """The cold start's examples of this step, the same list on every rank (the source is seeded and rewinds by step)."""
        if self._source is None:
            from megatron_mmsr1.run.demonstrations import open_source

            self._source = open_source(self.cfg, self.images)
        return self._source.batch(step, self.cfg.sft.examples_per_step)

    def publish(self, version: int) -> None:
        """Export the weights and put them into every engine under this version; the engines confirm it."""
        if self.cfg.train.mode != "full":
            return
        started = time.monotonic()
        target = self.out / "weights" / f"v{version:06d}"
        self.actor.export(target)
        if self.lead:
            DiskSync(self.engines).push(target, version)
            self._prune(self.out / "weights", "v*", self.cfg.train.keep_weights)
        self.parallel.barrier()
        self.seconds["sync"] = time.monotonic() - started

    # --------------------------------------------------------------------------------------------- logs and evaluation
    def log(self, step: int, metrics: dict[str, float], trajectories: list[Trajectory], trained: list[Trajectory]) -> None:
        self.step = step + 1
        if self.logger is None:
            return
        row: dict[str, float] = dict(metrics)
        row |= {f"seconds/{k}": v for k, v in self.seconds.items()}
        if self.cfg.algorithm.name == "grpo":
            row |= rollout_metrics(trajectories, self.cfg.protocol)
            row["data/skipped_rows"] = self.dataset.skipped if self.dataset else 0
            row |= self.watch.step(step, trajectories)
            if self.generated:
                row |= throughput(trajectories, self.seconds["rollout"])
            row["trained_share"] = len(trained) / max(len(trajectories), 1)
            gap = metrics.get("logprob_diff_mean", 0.0)
            row["logprob_alarm"] = float(gap > self.cfg.algorithm.logprob_alarm)
            if row["logprob_alarm"]:
                self.logger.warn(
                    f"step {step}: trainer and engine log-probs differ by {gap:.2e} on average, over algorithm.logprob_alarm="
                    f"{self.cfg.algorithm.logprob_alarm:g}: the engine may hold other weights or other kernels"
                )
        self.logger.write(step, row)
        if self.cfg.algorithm.name == "grpo":
            self.logger.samples(step, [_sample(t) for t in trajectories[:: max(1, len(trajectories) // SAMPLES)][:SAMPLES]])

    def evaluate(self, name: str, *, at: int) -> None:
        """Held-out questions through the engine, once a name (a resumed run does not repeat it)."""
        target = self.out / "eval" / f"{name}.json"
        if not self.cfg.data.heldout or self.cfg.train.mode != "full" or self.step != at:
            return
        if self.lead and self.worker is not None and not target.exists():
            result = evaluate_with(self.worker, self.cfg, name, weight_version=at, search=self.watch.url)
            if self.logger:
                self.logger.info(result.line())
        self.parallel.barrier()

    def evaluate_if_due(self, step: int) -> None:
        every = self.cfg.train.eval_interval
        if every and step % every == 0 and step < self.cfg.train.steps:
            self.evaluate(f"step_{step:06d}", at=step)

    # ------------------------------------------------------------------------------------------------------ checkpoints
    def save_if_due(self, step: int) -> None:
        if step % self.cfg.train.save_interval and step != self.cfg.train.steps and not self.spent:
            return
        extra = {
            "step": step,
            "sampler": self.sampler.state_dict() if self.sampler else None,
            "search": self.watch.identity() if self.lead else None,
        }
        self.actor.save(self.out / "checkpoints" / f"step_{step:06d}", extra)
        if self.lead:
            self._prune(self.out / "checkpoints", "step_*", self.cfg.train.keep_checkpoints)
        self.parallel.barrier()
        if self.spent:
            raise RunError(self._stopped())

    def finish(self) -> None:
        """The trained model as a Hugging Face checkpoint, with its page and serving.yaml."""
        self.actor.export(self.out / "model")
        if self.lead:
            try:
                model_card.write(self.out, self.out / "model", step=self.step)
            except (UsageError, RunError, OSError) as e:  # the weights are what matters; mmsr1 export writes the page
                self._warn(f"{self.out}/model has no page: {e}")
        self.parallel.barrier()

    def _resume(self) -> int:
        latest = self.actor.latest(self.out / "checkpoints")
        if latest is None:
            return 0
        extra = self.actor.load(latest)
        if self.sampler and extra["sampler"]:
            self.sampler.load_state_dict(extra["sampler"])
        if self.lead:
            print(f"resuming at step {extra['step']} from {latest}", flush=True)
        return int(extra["step"])

    # --------------------------------------------------------------------------------------------------------- helpers
    def _generate(self, indices: list[int], step: int) -> list[Trajectory]:
        assert self.worker is not None and self.dataset is not None
        prompts: list[Prompt] = [self.dataset[i] for i in indices]
        return self.worker.generate(
            prompts,
            step=step,
            indices=indices,
            weight_version=step,
            group_size=self.cfg.data.group_size,
            progress=self.watch.heard,
        )

    def _stored_rollouts(self, step: int) -> list[Trajectory]:
        """Rollouts already paid for: of the run being replayed, or of this run's own life before it was killed."""
        if self.cfg.train.mode == "train-only":
            return read_dump(Path(self.cfg.train.replay or "."), step)[0]
        if not dump_path(self.out / "rollouts", step).exists():
            return []
        trajectories, meta = read_dump(self.out / "rollouts", step)
        whole = any(t.reward is not None for t in trajectories)  # else an outage's or an empty purse's: roll out again
        return trajectories if whole and meta.get("config") == fingerprint(self.cfg) else []

    def _stopped(self) -> str:
        return (
            f"the search budget is used up ({self.spent}): training on without search would teach not to search. Raise it, or "
            "wait for the next day if it is the day's; the same command resumes the run"
        )

    def _warn(self, line: str) -> None:
        if self.logger:
            self.logger.warn(line)

    def _info(self, line: str) -> None:
        if self.logger:
            self.logger.info(line)

    @staticmethod
    def _prune(parent: Path, pattern: str, keep: int) -> None:
        for old in sorted(parent.glob(pattern))[:-keep]:
            shutil.rmtree(old)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self.worker is not None:
            with suppress(RunError):  # the run's own error, if any, is the one to show
                self.worker.close()
        if self.logger:
            self.logger.close()


def _sample(t: Trajectory) -> dict[str, Any]:
    """A trajectory as a row of the sample table."""
    return {
        "question": t.question,
        "gold": t.golden_answers[0] if t.golden_answers else "",
        "conversation": "\n".join(turn.text for turn in t.turns if turn.role != "prompt"),
        "status": t.status.value,
        "reward": t.reward,
    }
