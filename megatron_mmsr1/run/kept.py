"""What earlier steps left for later ones: groups not yet trained on, and rare successes. Each leader holds its part of them, a
checkpoint all of them.

A checkpoint's part of it is a dump beside the shards, written with the place in the data, so that the two belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.store import ImageStore
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.rollout.dump import read_share, write_dump
from megatron_mmsr1.run.ranks import Ranks
from megatron_mmsr1.run.successes import Successes
from megatron_mmsr1.trajectory import Trajectory

CARRIED, SUCCESSES = "carried", "successes"


class Kept:
    """`groups`: the ids of all carried groups in the order in which they were rolled out, the same on every rank. `carried`:
    this leader's trajectories of them, whole; empty on other ranks. `successes`: see there."""

    def __init__(self, cfg: RunConfig, ranks: Ranks, images: Path) -> None:
        self.cfg, self.ranks, self.images = cfg, ranks, images
        self.on = cfg.shaping.off_policy
        self.successes = Successes(cfg, ranks)
        self.groups: list[str] = []
        self.carried: list[Trajectory] = []

    def keep(self, groups: Sequence[str], held: Sequence[Trajectory]) -> None:
        """From now on these groups, of which this leader has the trajectories in `held`."""
        self.groups = list(groups)
        chosen = set(groups)
        self.carried = [t for t in held if t.group_id in chosen]

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint's own state holds, the same on every rank."""
        return {"groups": self.groups} if self.on else None

    def write(self, directory: Path) -> None:
        """This leader's part, into a checkpoint that is being written."""
        if self.on and self.ranks.is_leader:
            for name, held in ((CARRIED, self.carried), (SUCCESSES, self.successes.held)):
                write_dump(directory, name, held, {}, part=self.ranks.dp_rank, parts=self.ranks.dp_size)

    def restore(self, directory: Path, state: dict[str, Any] | None) -> None:
        """Collective. As the checkpoint at `directory` has it, which any number of leaders may have written. RunError where
        pictures of it are gone: these rollouts cannot be made again."""
        if not self.on or state is None:
            return
        self.groups = list(state["groups"])
        if self.ranks.is_leader:
            me, leaders = self.ranks.dp_rank, self.ranks.dp_size
            self.carried = read_share(directory, CARRIED, me, leaders)
            self.successes.held = read_share(directory, SUCCESSES, me, leaders)
        images = ImageStore(self.images)
        wanted = {i.sha256 for t in [*self.carried, *self.successes.held] for i in t.images}
        gone = int(self.ranks.max([float(sum(sha not in images for sha in wanted))])[0])
        if gone:
            raise RunError(
                f"{directory}: {gone} pictures of the rollouts that it keeps are missing from {self.images}: copy them back, "
                "or resume from an older checkpoint"
            )
