"""A finished step as one row of metrics, with a warning where training goes wrong, and a few samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.eval.metrics import rollout_metrics, throughput
from megatron_mmsr1.run.alarms import Row, judge, rows_needed
from megatron_mmsr1.run.logs import RunLog, read_metrics
from megatron_mmsr1.run.search_watch import SearchWatch
from megatron_mmsr1.trajectory import Trajectory

SAMPLES = 4  # trajectories a step in the table of samples


class StepLog:
    """Writes through `logger`; does nothing where it is None (on every rank but the first)."""

    def __init__(self, cfg: RunConfig, logger: RunLog | None, watch: SearchWatch, *, skipped_rows: int) -> None:
        self.cfg, self.logger, self.watch, self.skipped_rows = cfg, logger, watch, skipped_rows
        self._rows = list[Row](read_metrics(logger.path)[-rows_needed(cfg) :] if logger else [])

    def write(
        self,
        step: int,
        metrics: dict[str, float],
        trajectories: Sequence[Trajectory],
        *,
        trained: int,
        seconds: dict[str, float],
        generated: bool,
        shown: Sequence[Trajectory] = (),
    ) -> None:
        """`trained`: how many of the trajectories had a part in the update. `generated`: whether this life of the run rolled
        them out; throughput is told of those only. `seconds` go to seconds/NAME. `trajectories` may be outlines; a few of
        `shown`, which are whole, go into the table of samples."""
        if self.logger is None:
            return
        grpo = not self.cfg.algorithm.supervised
        row: dict[str, float] = dict(metrics)
        if "train_seconds" in metrics:
            seconds = seconds | {"train": metrics["train_seconds"]}
        row |= {f"seconds/{k}": v for k, v in seconds.items()}
        if grpo:
            row |= rollout_metrics(trajectories, self.cfg.protocol)
            row["data/skipped_rows"] = self.skipped_rows
            row |= self.watch.step(step, trajectories)
            if generated:
                row |= throughput(trajectories, seconds["rollout"])
            row["trained_share"] = trained / max(len(trajectories), 1)
        self.logger.write(step, row | self._alarms(step, row, self.logger))
        if grpo:
            self.logger.samples(step, [_sample(t) for t in shown[:: max(1, len(shown) // SAMPLES)][:SAMPLES]])

    def _alarms(self, step: int, row: dict[str, float], logger: RunLog) -> dict[str, float]:
        """The metrics of the alarms; those that begin and those that are over are said."""
        self._rows = [*self._rows[1 - rows_needed(self.cfg) :], row]
        told, begun, over = judge(self._rows, self.cfg)
        for name, why in begun.items():
            logger.warn(f"step {step}: alarm {name} begins: {why}")
        for name in over:
            logger.info(f"step {step}: alarm {name} is over")
        self._rows[-1] = row | told
        return told


def _sample(t: Trajectory) -> dict[str, Any]:
    """A trajectory as a row of the sample table."""
    return {
        "question": t.question,
        "gold": t.golden_answers[0] if t.golden_answers else "",
        "conversation": "\n".join(turn.text for turn in t.turns if turn.role != "prompt"),
        "status": t.status.value,
        "reward": t.reward,
    }
