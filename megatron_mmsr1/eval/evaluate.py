"""Held-out questions through the rollout's own agent loop: by a live engine, or by Atlas's scripted policies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.dataset import Prompt, PromptDataset
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.eval.results import EvalResult, save_all
from megatron_mmsr1.rollout.dump import write_dump
from megatron_mmsr1.search.facts import identity

if TYPE_CHECKING:
    from megatron_mmsr1.rollout.worker import RolloutWorker

EVAL_STEP = -1  # the seeds of an evaluation belong to no training step


def heldout(cfg: RunConfig) -> list[Prompt]:
    """The held-out prompts, `train.eval_limit` of them at most. UsageError if the config names none."""
    if not cfg.data.heldout:
        raise UsageError("data.heldout names no parquet file to evaluate on")
    data = PromptDataset(cfg.data.heldout, bad_rows=cfg.data.bad_rows)
    return [data[i] for i in range(min(len(data), cfg.train.eval_limit or len(data)))]


def evaluate_with(worker: RolloutWorker, cfg: RunConfig, name: str, *, weight_version: int, search: str | None) -> EvalResult:
    """One sampled answer a question; the trajectories are dumped, the result saved as OUTPUT/eval/NAME.json. `search`: the
    server's URL, to note what was searched."""
    prompts = heldout(cfg)
    done = worker.generate(
        prompts,
        step=EVAL_STEP,
        indices=list(range(len(prompts))),
        weight_version=weight_version,
        group_size=1,
        temperature=cfg.rollout.eval_temperature,
    )
    out = Path(cfg.output)
    meta = {"weights": weight_version, "search": identity(search)}
    write_dump(out / "rollouts", f"eval_{name}", done, meta)
    result = EvalResult.from_trajectories(name, done, cfg.protocol, **meta)
    result.save(out / "eval" / f"{name}.json")
    return result


def evaluate_model(cfg: RunConfig, engines: list[str], search: str | None) -> EvalResult:
    """The model that `model.path` names, under the run's own name."""
    from megatron_mmsr1.rollout.worker import RolloutWorker

    worker = RolloutWorker(cfg, engines, search, Path(cfg.output) / "images")
    try:
        return evaluate_with(worker, cfg, "model", weight_version=0, search=search)
    finally:
        worker.close()


def evaluate_policies(cfg: RunConfig, search: str | None) -> list[EvalResult]:
    """Oracle, never, always and random, with the real search server and the real reward; OUTPUT/eval/policies.json."""
    from megatron_mmsr1.atlas.policies import POLICIES, run_policy

    results = []
    for policy in POLICIES:
        done = run_policy(policy, heldout(cfg), cfg, search)
        results.append(EvalResult.from_trajectories(policy, done, cfg.protocol, search=identity(search)))
    save_all(results, Path(cfg.output) / "eval" / "policies.json")
    return results
