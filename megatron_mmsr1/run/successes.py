"""Rare successes that are kept for a while: one a question, on the leader that rolled it out or read it from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.run.ranks import Ranks
from megatron_mmsr1.run.trainable import scored
from megatron_mmsr1.shaping.overlong import shaped_reward
from megatron_mmsr1.shaping.replay import rare, wants
from megatron_mmsr1.shaping.success import succeeded
from megatron_mmsr1.trajectory import Trajectory, by_group

REPLAYED = "replayed"  # the key of a replayed trajectory's `extra`: the group that it was rolled out in


class Successes:
    """`held`: this leader's, whole; questions are told apart by their prompt id. All leaders decide by the same
    outlines, so that of each question one is kept among all of them."""

    def __init__(self, cfg: RunConfig, ranks: Ranks) -> None:
        self.cfg, self.ranks = cfg, ranks
        self.on = cfg.shaping.replay.on
        self.held: list[Trajectory] = []

    def joining(self, step: int, fresh: Sequence[Trajectory]) -> list[Trajectory]:
        """Those of this leader that join groups of `fresh`, outlines of all that the step rolled out: copies with the group's
        id, and the reward, log-probs and weight versions that they had."""
        if not self.on:
            return []
        oldest = step - self.cfg.shaping.replay.max_age
        held = [t for t in self.held if t.step is not None and t.step >= oldest]
        out: list[Trajectory] = []
        for group, members in by_group(scored(fresh)).items():
            rewards = [shaped_reward(t, self.cfg) for t in members]
            for t in held:
                if t.prompt_id == members[0].prompt_id and wants(rewards, shaped_reward(t, self.cfg)):
                    last = max(m.sample_index for m in members)
                    out.append(replace(t, group_id=group, sample_index=last + 1, extra=t.extra | {REPLAYED: t.group_id}))
        return out

    def learn(self, step: int, fresh: Sequence[Trajectory], local: Sequence[Trajectory]) -> None:
        """After a step: keep the best of each group that succeeded seldom, in the place of an older one of its question; forget
        what is now got right more often, and what is too old for the next step. `local`: this leader's of `fresh`, whole."""
        if not self.on:
            return
        best: dict[str, tuple[str, int] | None] = {}
        for group, members in sorted(by_group(scored(fresh)).items(), key=lambda g: g[0]):
            right = [succeeded(t) for t in members]
            if any(right):
                top = max(members, key=lambda t: (succeeded(t), shaped_reward(t, self.cfg), -t.sample_index))
                seldom = rare(right, self.cfg.shaping.replay.threshold)
                best[top.prompt_id] = (group, top.sample_index) if seldom else None
        oldest = step + 1 - self.cfg.shaping.replay.max_age
        older = [t for t in self.held if t.prompt_id not in best and t.step is not None and t.step >= oldest]
        self.held = older + [t for t in local if best.get(t.prompt_id) == (t.group_id, t.sample_index)]
