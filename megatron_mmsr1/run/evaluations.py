"""When a run evaluates: before, after, and every so many steps; each evaluation once for the weights that it is of."""

from __future__ import annotations

from pathlib import Path

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.eval.evaluate import evaluate_with
from megatron_mmsr1.rollout.worker import RolloutWorker
from megatron_mmsr1.run.logs import RunLog
from megatron_mmsr1.run.ranks import Ranks
from megatron_mmsr1.run.search_watch import SearchWatch


class Evaluations:
    """Held-out questions through the engines of a run in mode `full`; nothing in other modes or without held-out data."""

    def __init__(
        self, cfg: RunConfig, ranks: Ranks, worker: RolloutWorker | None, watch: SearchWatch, logger: RunLog | None
    ) -> None:
        self.cfg, self.ranks, self.worker, self.watch, self.logger = cfg, ranks, worker, watch, logger
        self.on = bool(cfg.data.heldout) and cfg.train.mode == "full" and cfg.algorithm.name == "grpo"

    def evaluate(self, name: str, *, step: int) -> None:
        """Collective. The weights after `step` steps, unless OUTPUT/eval/NAME.json is of them already."""
        if not self.on:
            return
        target = Path(self.cfg.output) / "eval" / f"{name}.json"
        if self.ranks.rank == 0 and self.worker is not None and not target.exists():
            result = evaluate_with(self.worker, self.cfg, name, weight_version=step, search=self.watch.url)
            if self.logger:
                self.logger.info(result.line())
        self.ranks.barrier()

    def evaluate_if_due(self, step: int) -> None:
        """Collective. After every `train.eval_interval` steps but the last."""
        every = self.cfg.train.eval_interval
        if every and step % every == 0 and step < self.cfg.train.steps:
            self.evaluate(f"step_{step:06d}", step=step)
