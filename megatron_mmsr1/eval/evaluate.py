"""Held-out questions through the rollout's own agent loop: by a live engine, or by Atlas's scripted policies."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.dataset import Prompt, PromptDataset
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.eval.key import Key, evaluation_key, model_id
from megatron_mmsr1.eval.results import EvalResult, save_all
from megatron_mmsr1.rollout.dump import write_dump
from megatron_mmsr1.rollout.jobs import now_and_then
from megatron_mmsr1.search.server.launch import identity
from megatron_mmsr1.trajectory import Trajectory

if TYPE_CHECKING:
    from megatron_mmsr1.rollout.worker import RolloutWorker

TRIES = 3
EVAL_STEP = -1  # the seeds of an evaluation belong to no training step


def heldout(cfg: RunConfig) -> list[Prompt]:
    """The held-out prompts, `train.eval_limit` of them at most. UsageError if the config names none."""
    if not cfg.data.heldout:
        raise UsageError("data.heldout names no parquet file to evaluate on")
    data = PromptDataset(cfg.data.heldout, bad_rows=cfg.data.bad_rows)
    return [data[i] for i in range(min(len(data), cfg.train.eval_limit or len(data)))]


def evaluate_with(
    worker: RolloutWorker,
    cfg: RunConfig,
    name: str,
    prompts: Sequence[Prompt],
    key: Key,
    *,
    weight_version: int,
    search: str | None,
    say: Callable[[str], None] = print,
) -> EvalResult:
    """One sampled answer a question; the trajectories are dumped, the result saved as OUTPUT/eval/NAME.json with its key.

    `search`: the server's URL, to note what was searched. Questions that an engine or a tool failed are asked again. RunError,
    and nothing is saved, if more than `train.eval_max_failed` of them fail still: those that need no search would remain, and
    the accuracy would be theirs.
    """
    started = time.monotonic()
    done = ask_all(worker, cfg, prompts, weight_version=weight_version, say=say)
    failed = [t for t in done if t.reward is None]
    if len(failed) > cfg.train.eval_max_failed * len(done):
        kinds = ", ".join(f"{n} {status}" for status, n in Counter(str(t.status) for t in failed).items())
        raise RunError(
            f"evaluation {name}: {len(failed)} of {len(done)} questions failed in the engine or a tool, after {TRIES} tries "
            f"({kinds}), over train.eval_max_failed={cfg.train.eval_max_failed:g}: what is left would be a biased sample, and "
            "nothing was recorded. Mend what the logs name; the same command evaluates again"
        )
    out = Path(cfg.output)
    meta = {"weights": weight_version, "key": key, "search": identity(search), "seconds": round(time.monotonic() - started, 1)}
    write_dump(out / "rollouts", f"eval_{name}", done, meta)
    result = EvalResult.from_trajectories(name, done, cfg.protocol, **meta)
    result.save(out / "eval" / f"{name}.json")
    return result


def ask_all(
    worker: RolloutWorker, cfg: RunConfig, prompts: Sequence[Prompt], *, weight_version: int, say: Callable[[str], None]
) -> list[Trajectory]:
    """A trajectory a prompt, in order; those without a reward after `TRIES` tries failed in an engine or a tool."""
    done: list[Trajectory] = []
    left = list(range(len(prompts)))
    for attempt in range(TRIES):
        if attempt:
            say(f"evaluation: asking {len(left)} questions again that failed in the engine or a tool")
        made = worker.generate(
            [prompts[i] for i in left],
            step=EVAL_STEP,
            indices=left,  # which seed the sampling: a question asked again draws what it would have drawn
            weight_version=weight_version,
            group_size=1,
            temperature=cfg.rollout.eval_temperature,
            progress=now_and_then(say),
        )
        if attempt:
            for i, t in zip(left, made, strict=True):
                done[i] = t
        else:
            done = list(made)
        left = [i for i, t in enumerate(done) if t.reward is None]
        if not left:
            break
    return done


def evaluate_model(
    cfg: RunConfig, engines: list[str], search: str | None, version: int, say: Callable[[str], None]
) -> EvalResult:
    """The model that `model.path` names, which the engines hold as `version`; OUTPUT/eval/model.json."""
    from megatron_mmsr1.rollout.worker import RolloutWorker

    prompts = heldout(cfg)
    key = evaluation_key(cfg, prompts, model_id(Path(cfg.model.path)))
    say(f"evaluating {len(prompts)} questions ({cfg.model.path}) ...")
    worker = RolloutWorker(cfg, engines, search, Path(cfg.output) / "images")
    try:
        return evaluate_with(worker, cfg, "model", prompts, key, weight_version=version, search=search, say=say)
    finally:
        worker.close()


def evaluate_policies(cfg: RunConfig, search: str | None, say: Callable[[str], None]) -> list[EvalResult]:
    """Oracle, never, always and random, with the real search server and the real reward; OUTPUT/eval/policies.json."""
    from megatron_mmsr1.atlas.policies import POLICIES, run_policy

    results: list[EvalResult] = []
    prompts = heldout(cfg)
    for policy in POLICIES:
        say(f"evaluating {len(prompts)} questions ({policy}) ...")
        done = run_policy(policy, prompts, cfg, search)
        results.append(EvalResult.from_trajectories(policy, done, cfg.protocol, search=identity(search)))
    save_all(results, Path(cfg.output) / "eval" / "policies.json")
    return results
