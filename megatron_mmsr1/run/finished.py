"""Whether a run has nothing left to do, told from its files, before anything is started for it."""

from __future__ import annotations

from pathlib import Path

from megatron_mmsr1.checkpoints.manifest import EXPORT_AGAIN, MANIFEST, read
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.eval.results import AFTER, EvalResult
from megatron_mmsr1.run.directory import checkpointed_step


def nothing_left(cfg: RunConfig) -> bool:
    """All steps are done, model/ holds the weights of the last one, and the evaluation of these weights stands.

    For rollouts without a trainer: never, since they leave no model.
    """
    out = Path(cfg.output)
    model, done = out / "model", checkpointed_step(out)
    if cfg.train.mode == "rollout-only" or done < cfg.train.steps or not (model / MANIFEST).is_file():
        return False
    held = read(model, EXPORT_AGAIN)
    if held.step != done:
        return False
    if cfg.algorithm.supervised or cfg.train.mode != "full" or not cfg.data.heldout:
        return True
    from megatron_mmsr1.eval.evaluate import heldout
    from megatron_mmsr1.eval.key import evaluation_key

    file = out / "eval" / f"{AFTER}.json"
    return file.is_file() and EvalResult.load(file).meta.get("key") == evaluation_key(cfg, heldout(cfg), held.weights)
