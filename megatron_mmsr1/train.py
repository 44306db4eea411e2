"""The loop, in one screen. Every rank runs it; each data-parallel leader rolls out its own share of the prompts.

Started by `mmsr1 train` (through torchrun) or by srun: `python -m megatron_mmsr1.train CONFIG --engine URL --search URL`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_mmsr1.run.run import Run


def train(run: Run) -> None:
    """GRPO: roll out, score, normalise by group, step, publish the weights; evaluate before and after."""
    run.evaluate("before", at=0)
    run.evaluate_if_due(run.step)  # a run that was stopped after its checkpoint has not come to it
    for step in range(run.step, run.cfg.train.steps):
        trajectories = run.rollout(step)
        kept, advantages = run.advantages(trajectories)
        metrics = run.actor.train_step(run.shares(kept), advantages)
        run.log(step, metrics, trajectories, kept)
        run.save_if_due(step + 1)
        run.publish(step + 1)
        run.evaluate_if_due(step + 1)
    run.evaluate("after", at=run.cfg.train.steps)
    run.finish()


def cold_start(run: Run) -> None:
    """SFT through the same step: demonstrations in the place of rollouts, their own tokens in the place of advantages."""
    for step in range(run.step, run.cfg.train.steps):
        demonstrations = run.demonstrations(step)
        metrics = run.actor.train_step(demonstrations, None)
        run.log(step, metrics, demonstrations, demonstrations)
        run.save_if_due(step + 1)
    run.finish()


def main() -> None:
    from megatron_mmsr1.cluster import rendezvous
    from megatron_mmsr1.megatron import platform

    rendezvous.adopt()
    platform.install()  # before anything imports megatron.core
    from megatron_mmsr1 import config
    from megatron_mmsr1.run.lock import lock_of_ranks
    from megatron_mmsr1.run.run import Run

    parser = argparse.ArgumentParser(prog="megatron_mmsr1.train", description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--engine", action="append", default=[], help="URL of an SGLang server; may be given several times")
    parser.add_argument("--search", help="URL of the search server")
    args = parser.parse_args()
    cfg = config.load(args.config)
    with lock_of_ranks(Path(cfg.output)) as lock, Run(cfg, args.engine, args.search, lock) as run:
        (cold_start if run.cfg.algorithm.supervised else train)(run)


if __name__ == "__main__":
    from megatron_mmsr1.errors import exit_with_message

    exit_with_message(main)
