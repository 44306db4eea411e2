"""Which groups a step trains on: the carried ones first, then its own in the order in which they were drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.run.trainable import scored
from megatron_mmsr1.shaping.overlong import shaped_reward
from megatron_mmsr1.shaping.refill import varied
from megatron_mmsr1.trajectory import Trajectory, by_group


@dataclass(frozen=True)
class Choice:
    """`chosen` and `left`: ids of groups with variance, in order: those that are trained on, and those beyond what was wanted.
    `live`: how many of the step's own have variance."""

    chosen: list[str] = field(default_factory=list[str])
    left: list[str] = field(default_factory=list[str])
    live: int = 0


def choose(cfg: RunConfig, carried: Sequence[str], own: Iterable[str], outlines: Sequence[Trajectory], wanted: int) -> Choice:
    """Of the `carried` groups and the step's `own` ones, ids in order, whose members are among `outlines`."""
    members = by_group(scored(outlines))
    live = [g for g in own if varied([shaped_reward(t, cfg) for t in members.get(g, ())])]
    every = [*carried, *live]
    return Choice(every[:wanted], every[wanted:], len(live))


def members_of(groups: Sequence[str], outlines: Sequence[Trajectory]) -> list[Trajectory]:
    """What can be trained on in these groups, group by group in their order, sample by sample."""
    place = {g: i for i, g in enumerate(groups)}
    found = [t for t in scored(outlines) if t.group_id in place]
    return sorted(found, key=lambda t: (place[t.group_id], t.sample_index))
