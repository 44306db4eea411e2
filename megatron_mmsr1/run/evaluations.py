"""When a run evaluates: before, after, and every so many steps; each evaluation once for the weights that it is of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.eval.evaluate import evaluate_with, heldout
from megatron_mmsr1.eval.key import evaluation_key
from megatron_mmsr1.eval.results import AFTER, BEFORE, EvalResult
from megatron_mmsr1.rollout.dump import dump_path
from megatron_mmsr1.rollout.worker import RolloutWorker
from megatron_mmsr1.run.logs import RunLog
from megatron_mmsr1.run.ranks import Ranks
from megatron_mmsr1.run.search_watch import SearchWatch


class Evaluations:
    """Held-out questions through the engines of a run in mode `full`; nothing in other modes or without held-out data.

    `weights_id`: collective, names the weights that the engines hold.
    """

    def __init__(
        self,
        cfg: RunConfig,
        ranks: Ranks,
        worker: RolloutWorker | None,
        weights_id: Callable[[], str],
        watch: SearchWatch,
        logger: RunLog | None,
    ) -> None:
        self.cfg, self.ranks, self.worker, self.weights_id = cfg, ranks, worker, weights_id
        self.watch, self.logger = watch, logger
        self.on = bool(cfg.data.heldout) and cfg.train.mode == "full" and not cfg.algorithm.supervised

    def evaluate(self, name: str, *, step: int) -> None:
        """Collective. The weights after `step` steps, unless OUTPUT/eval/NAME.json is of them, these questions and settings."""
        if not self.on:
            return
        weights = self.weights_id()
        if self.ranks.rank == 0 and self.worker is not None and self.logger is not None:
            self._evaluate(self.worker, self.logger, name, step, weights)
        self.ranks.barrier()

    def _evaluate(self, worker: RolloutWorker, logger: RunLog, name: str, step: int, weights: str) -> None:
        prompts = heldout(self.cfg)
        key = evaluation_key(self.cfg, prompts, weights)
        file = Path(self.cfg.output) / "eval" / f"{name}.json"
        if file.exists() and EvalResult.load(file).meta.get("key") == key:
            return
        logger.info(f"evaluating {len(prompts)} questions ({name}) ...")
        try:
            search = self.watch.url
            result = evaluate_with(worker, self.cfg, name, prompts, key, weight_version=step, search=search, say=logger.info)
        except RunError as e:
            if name in (BEFORE, AFTER):
                raise
            logger.warn(str(e))  # training goes on; only this point of the curve is missing
            return
        logger.info(result.line())

    def due(self, step: int) -> bool:
        """After every `train.eval_interval` steps but the last."""
        every = self.cfg.train.eval_interval
        return self.on and bool(every) and step % every == 0 and 0 < step < self.cfg.train.steps

    def wants(self, step: int) -> bool:
        """Whether the weights after so many steps may be evaluated: before, after or on the way."""
        return self.on and (step in (0, self.cfg.train.steps) or self.due(step))

    def evaluate_if_due(self, step: int) -> None:
        """Collective."""
        if self.due(step):
            self.evaluate(step_name(step), step=step)


def rename_earlier_after(out: Path, steps: int) -> None:
    """A run that is extended keeps the evaluation of what was its last step, under that step's name.

    Called before a run of `steps` steps goes on in `out`, so that `after` never means other weights than the last ones.
    """
    file = out / "eval" / f"{AFTER}.json"
    if not file.is_file():
        return
    result = EvalResult.load(file)
    at = result.meta.get("weights")
    if not isinstance(at, int) or at == steps:
        return
    result.name = step_name(at)
    result.save(file.with_stem(result.name))
    dump = dump_path(out / "rollouts", f"eval_{AFTER}")
    if dump.is_file():
        dump.replace(dump_path(out / "rollouts", f"eval_{result.name}"))
    file.unlink()


def step_name(step: int) -> str:
    return f"step_{step:06d}"
