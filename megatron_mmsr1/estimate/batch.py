"""What a step's trajectories are taken to be: means, which nobody knows before a run. Each can be given to `mmsr1 estimate`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_mmsr1.config import RunConfig


@dataclass(frozen=True)
class Batch:
    """Tokens of a mean trajectory: its first prompt, what is sampled, what tools return; `picture` of them stand for
    pictures."""

    prompt: int = 1400
    sampled: int = 400
    observed: int = 1500
    picture: int = 700

    @property
    def tokens(self) -> int:
        return self.prompt + self.sampled + self.observed


@dataclass(frozen=True)
class Work:
    """What one rank computes in one update: `count` micro-batches of `tokens`, of which `scored` are asked of the output layer
    and `pictured` stand for pictures, of `length_of_picture` each, which the tower sees as `encoded`: rollouts of a group have
    theirs in common; it is made of sequences of `length`."""

    count: int
    tokens: int
    scored: int
    pictured: int
    encoded: int
    length: int
    length_of_picture: int
    updates: int


def work(cfg: RunConfig, b: Batch) -> Work:
    """Micro-batches as full as whole trajectories make them, each trajectory with all of its tokens (prefixes that stand once
    make it less: they are not counted)."""
    a = cfg.algorithm
    updates = 1 if a.supervised else a.updates_per_step
    each = (cfg.sft.examples_per_step if a.supervised else cfg.data.prompts_per_step * cfg.data.group_size) / cfg.data_parallel
    mine = math.ceil(each / updates)
    fit = min(mine, max(1, cfg.megatron.tokens_per_microbatch // b.tokens))
    tokens, scored, pictured = (fit * n // cfg.megatron.context_parallel for n in (b.tokens, b.sampled, b.picture))
    group = 1 if a.supervised else cfg.data.group_size
    return Work(math.ceil(mine / fit), tokens, scored, pictured, pictured // min(fit, group), b.tokens, b.picture, updates)
