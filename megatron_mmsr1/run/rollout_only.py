"""`train.mode: rollout-only`: the rollouts of a run without its trainer, dumped a step, for `train-only` or for reading."""

from __future__ import annotations

import time
from pathlib import Path

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.dataset import PromptDataset
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.eval.metrics import rollout_metrics, throughput
from megatron_mmsr1.procs.progress import progress
from megatron_mmsr1.rollout.dump import dump_files, read_dump, write_dump
from megatron_mmsr1.rollout.worker import RolloutWorker
from megatron_mmsr1.run.logs import RunLog
from megatron_mmsr1.run.order import sampler_of
from megatron_mmsr1.run.search_watch import SearchWatch, budget_reached


def rollout_only(cfg: RunConfig, engines: list[str], search: str | None, version: int) -> None:
    """Dump `train.steps` steps of rollouts of the model as it is, which the engines hold as `version`; steps that stand in the
    output directory are kept."""
    out = Path(cfg.output)
    data = PromptDataset(cfg.data.train, bad_rows=cfg.data.bad_rows)
    sampler = sampler_of(cfg, data)
    worker = RolloutWorker(cfg, engines, search, out / "images")
    done = {step for step in range(cfg.train.steps) if dump_files(out / "rollouts", step)}
    first = next((step for step in range(cfg.train.steps) if step not in done), cfg.train.steps)
    log = RunLog(out, cfg, resume_step=first, done=done)
    watch = SearchWatch(search, cfg, log.warn, log.info)
    try:
        with progress("Rollout", cfg.train.steps) as shown:
            for step in range(cfg.train.steps):
                indices = sampler.take(cfg.data.prompts_per_step, step)
                if step in done:
                    if step not in log.logged:  # killed between the dump and its line
                        log.write(step, rollout_metrics(read_dump(out / "rollouts", step)[0], cfg.protocol))
                    shown.step()
                    continue
                started = time.monotonic()
                made = worker.generate(
                    [data[i] for i in indices],
                    step=step,
                    indices=indices,
                    weight_version=version,
                    group_size=cfg.data.group_size,
                    progress=watch.heard,
                )
                metrics = rollout_metrics(made, cfg.protocol) | throughput(made, time.monotonic() - started)
                metrics |= watch.step(step, made) | {"data/skipped_rows": data.skipped}
                if spent := budget_reached(made):
                    raise RunError(f"the search budget is used up ({spent}); raise it, and the same command goes on")
                write_dump(out / "rollouts", step, made, {"weights": version, "search": watch.identity()})
                log.write(step, metrics)
                shown.step(reward=metrics.get("reward/mean", 0.0), searches=metrics.get("search/share", 0.0))
    finally:
        log.close()
        worker.close()
