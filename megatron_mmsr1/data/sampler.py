"""Which rows come next, in an order that a resumed run continues exactly."""

from __future__ import annotations

import random
from typing import Any

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.shaping.curriculum import Curriculum


class ResumableSampler:
    """Endless indices of `n` rows, each once an epoch; shuffled anew every epoch if `shuffle`.

    The order depends on n, seed and epoch alone, so the state is two numbers and the settings they belong to. Under a
    `curriculum` the rows that it does not open yet are passed over: an epoch is then at most once each row.
    """

    def __init__(self, n: int, *, seed: int, shuffle: bool, curriculum: Curriculum | None = None) -> None:
        if n < 1:
            raise UsageError("there are no rows to sample from: the data files are empty")
        self.n, self.seed, self.shuffle, self.curriculum = n, seed, shuffle, curriculum
        self.epoch, self.position = 0, 0
        self._order = self._permutation()

    def take(self, k: int, step: int = 0) -> list[int]:
        """The next `k` indices; may cross into the next epoch, or several. `step`: of the run, which a curriculum goes by."""
        out: list[int] = []
        c = self.curriculum
        opened = self.n if c is None else c.rows(step)
        while len(out) < k:
            if self.position == self.n:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._permutation()
            part = self._order[self.position : self.position + k - len(out)]
            out += part if c is None else [row for row in part if c.places[row] < opened]
            self.position += len(part)
        return out

    def state_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "epoch": self.epoch,
            "position": self.position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken. UsageError if it belongs to other data, another seed or another
        setting."""
        for key in ("n", "seed", "shuffle"):
            if state[key] != getattr(self, key):
                raise UsageError(
                    f"the checkpoint's sampler has {key}={state[key]}, this run {key}={getattr(self, key)}: "
                    f"resume with the data and settings of the checkpoint, or start a new run"
                )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._order = self._permutation()

    def _permutation(self) -> list[int]:
        order = list(range(self.n))
        if self.shuffle:
            # A string seed is hashed with SHA-512: the same in every process and on every machine.
            random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        return order
