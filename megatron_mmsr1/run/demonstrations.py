"""Where a cold start's demonstrations come from: the generator of a made world (Atlas, maths), or a JSONL file of trajectories.

A source answers `batch(step, n)` the same for the same step on every rank and after a resume, so that nothing but the step
number need be saved.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.images import ImageStore
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.trajectory import Trajectory


class Source(Protocol):
    def batch(self, step: int, n: int) -> list[Trajectory]: ...


class FileSource:
    """A JSONL file of `Trajectory.to_dict` rows, shuffled anew each epoch."""

    def __init__(self, path: Path, seed: int) -> None:
        if not path.is_file():
            raise UsageError(f"sft.source: no file of demonstrations at {path}")
        self.rows: Sequence[str] = path.read_text().splitlines()
        self.path, self.seed = path, seed
        self._orders: dict[int, list[int]] = {}
        if not self.rows:
            raise UsageError(f"sft.source: {path} is empty")

    def batch(self, step: int, n: int) -> list[Trajectory]:
        out = []
        for at in range(step * n, step * n + n):
            epoch, i = divmod(at, len(self.rows))
            line = self._order(epoch)[i]
            try:
                out.append(Trajectory.from_dict(json.loads(self.rows[line])))
            except (KeyError, TypeError, ValueError) as e:
                raise UsageError(f"{self.path}:{line + 1}: not a trajectory: {e}") from e
        return out

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            n = len(self.rows)
            self._orders = {epoch: random.Random(f"{self.seed}/{epoch}").sample(range(n), n)}
        return self._orders[epoch]


class DrawnSource:
    """Demonstrations drawn as they are needed: number i of a schedule is a pure function of the seed and i."""

    def __init__(self, draw: Callable[[int], Trajectory]) -> None:
        self._draw = draw

    def batch(self, step: int, n: int) -> list[Trajectory]:
        return [self._draw(i) for i in range(step * n, step * n + n)]


def open_source(cfg: RunConfig, images: ImageStore) -> Source:
    """The source that `sft.source` names. Raises UsageError for a missing file or an unknown option."""
    if not cfg.sft.drawn:
        return FileSource(Path(cfg.sft.source), cfg.seed)
    from transformers import AutoTokenizer

    raw = {"examples": cfg.train.steps * cfg.sft.examples_per_step, **cfg.sft.options}
    tokenizer = AutoTokenizer.from_pretrained(cfg.model.path)
    if cfg.sft.source == "maths":
        from megatron_mmsr1.maths import demos as maths

        return DrawnSource(maths.Demonstrations(maths.parse_options(raw), tokenizer, images, cfg.seed).__getitem__)
    from megatron_mmsr1.atlas.demo_options import parse_options
    from megatron_mmsr1.atlas.demos import Demonstrations

    return DrawnSource(Demonstrations(parse_options(raw), tokenizer, images, cfg.seed).__getitem__)
