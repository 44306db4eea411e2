"""A run's choice of what it trains on, without engine and trainer: real sampler, rollouts, dumps and kept groups, leaders in
threads, and a worker whose rewards are a function of row and step."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from megatron_mmsr1 import config
from megatron_mmsr1.data.sampler import ResumableSampler
from megatron_mmsr1.run.kept import Kept
from megatron_mmsr1.run.rollouts import Rollouts
from megatron_mmsr1.trajectory import Status, ToolCall, ToolStatus, Trajectory, group_name

Reward = Callable[[int, int, int], float | None]  # row, step, sample -> reward
ROWS = 40


class Killed(Exception):
    """As a power cut: nothing after it runs."""


class Threads:
    """One of `size` leaders, each in a thread of its own; every method is collective."""

    def __init__(self, rank: int, size: int, shared: list[Any], barrier: threading.Barrier) -> None:
        self.rank = self.dp_rank = rank
        self.dp_size, self.is_leader = size, True
        self._shared, self._barrier = shared, barrier

    def _all(self, value: Any) -> list[Any]:
        self._shared[self.rank] = value
        self._barrier.wait()
        found = list(self._shared)
        self._barrier.wait()
        return found

    def barrier(self) -> None:
        self._barrier.wait()

    def broadcast_object(self, value: Any, source: int = 0) -> Any:
        return self._all(value)[source]

    def max(self, values: list[float]) -> list[float]:
        return [max(column) for column in zip(*self._all(values), strict=True)]

    def gather_from_leaders(self, local: list[Any]) -> list[Any]:
        return [x for part in self._all(local) for x in part]

    def distribute(self, local: Sequence[Trajectory], counts: Sequence[int], owners: Sequence[int]) -> list[Trajectory]:
        every = [t for part in self._all(local) for t in part]
        assert len(every) == len(owners) == sum(counts)
        return [t for t, owner in zip(every, owners, strict=True) if owner == self.dp_rank]


@dataclass
class Worker:
    """Rolls out by `reward`; `asked` holds the (step, row, copy) of each group. Raises Killed at the call `dies_at`."""

    reward: Reward
    asked: list[tuple[int, int, int]] = field(default_factory=list)
    dies_at: int | None = None
    calls: int = 0
    refused: bool = False  # a search of each trajectory, by the budget

    def generate(
        self, prompts: Any, *, step: int, indices: list[int], copies: list[int], weight_version: int, group_size: int, **_: Any
    ) -> list[Trajectory]:
        self.calls += 1
        if self.calls == self.dies_at:
            raise Killed
        out = []
        for row, copy in zip(indices, copies, strict=True):
            self.asked.append((step, row, copy))
            for sample in range(group_size):
                t = Trajectory(f"p{row}", group_name(step, row, copy), sample, "q", ["a"], status=Status.ANSWERED, step=step)
                t.append("prompt", [1, 2], "q")
                t.append("assistant", [3], "a", logprobs=[-1.0], weight_versions=[weight_version])
                t.reward = self.reward(row, step, sample)
                t.reward_parts = {"acc": float((t.reward or 0.0) > 0.5)}
                t.unobserved = [ToolCall("text", "q", ToolStatus.BUDGET)] * self.refused
                out.append(t)
        return out


def some_live(share: float, seed: int = 0) -> Reward:
    """Rewards by which about this share of the groups of (row, step) has variance."""

    def reward(row: int, step: int, sample: int) -> float:
        live = random.Random(f"{seed}/{row}/{step}").random() < share
        return float(sample == 0) if live else 0.0

    return reward


@dataclass
class Life:
    """One life of a run: what each step drew and trained on, in order, with each one's reward and weight version."""

    steps: dict[int, list[tuple[str, int, float, int]]] = field(default_factory=dict)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    fresh: dict[int, list[str]] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    asked: list[tuple[int, int, int]] = field(default_factory=list)


def live(
    out: Path,
    reward: Reward,
    shaping: dict[str, Any],
    *,
    steps: int,
    leaders: int = 1,
    checkpoint_every: int = 1,
    dies_at: int | None = None,
    prompts: int = 4,
    group_size: int = 2,
    refused: bool = False,
    **train: Any,
) -> Life:
    """From the newest checkpoint in `out` on, to `steps` or until the worker of the last leader dies at its call `dies_at`."""
    raw = {
        "model": {"path": "m"},
        "output": str(out),
        "data": {"prompts_per_step": prompts, "group_size": group_size},
        "train": {"ranks": leaders, **train},
        "shaping": shaping,
    }
    cfg = config.parse(raw)
    found, barrier, shared = Life(), threading.Barrier(leaders), [None] * leaders
    failed: list[BaseException] = []

    def lead(rank: int) -> None:
        ranks = Threads(rank, leaders, shared, barrier)
        worker = Worker(reward, dies_at=dies_at if rank == leaders - 1 else None, refused=refused)
        kept = Kept(cfg, ranks, out / "images")
        sampler = ResumableSampler(ROWS, seed=0, shuffle=True)
        watch = SimpleNamespace(identity=dict, heard=None, paused_s=0.0, pauses_of_all=lambda _: None)
        rollouts = Rollouts(cfg, ranks, list(range(ROWS)), sampler, worker, watch, found.warned.append, kept)  # type: ignore[arg-type]
        try:
            _steps(rollouts, sampler, kept, rank)
        except (Killed, threading.BrokenBarrierError) as e:
            failed.append(e)
            barrier.abort()
        except BaseException as e:
            failed.insert(0, e)
            barrier.abort()
        found.asked += worker.asked

    def _steps(rollouts: Rollouts, sampler: ResumableSampler, kept: Kept, rank: int) -> None:
        checkpoints = sorted((out / "checkpoints").glob("*"))
        start = 0
        if checkpoints:
            start = int(checkpoints[-1].name)
            state = json.loads((checkpoints[-1] / "state.json").read_text())
            sampler.load_state_dict(state["sampler"])
            kept.restore(checkpoints[-1], state["kept"])
            found.kept = list(kept.groups)
        for step in range(start, steps):
            fresh = rollouts.take(step)
            chosen = rollouts.trainable
            whole = rollouts.shares(chosen, [i % leaders for i in range(len(chosen))])
            assert [len(t.token_ids) > 0 for t in whole] == [i % leaders == rank for i in range(len(chosen))]
            if rank == 0:
                found.steps[step] = [(t.group_id, t.sample_index, float(t.reward or 0), t.step or 0) for t in whole]
                found.metrics[step] = dict(rollouts.metrics)
                found.fresh[step] = [t.group_id for t in fresh]
                found.kept = list(kept.groups)
            if (step + 1) % checkpoint_every == 0:
                _save(out / "checkpoints" / f"{step + 1:06d}", sampler, kept, rollouts)

    def _save(directory: Path, sampler: ResumableSampler, kept: Kept, rollouts: Rollouts) -> None:
        part = directory.parent.parent / f"part-{directory.name}"
        part.mkdir(parents=True, exist_ok=True)
        directory.parent.mkdir(exist_ok=True)
        kept.write(part)
        if rollouts.ranks.rank == 0:
            (part / "state.json").write_text(json.dumps({"sampler": sampler.state_dict(), "kept": kept.state()}))
        rollouts.ranks.barrier()
        if rollouts.ranks.rank == 0:
            part.rename(directory)
        rollouts.ranks.barrier()

    threads = [threading.Thread(target=lead, args=(rank,)) for rank in range(leaders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed and not isinstance(failed[0], Killed | threading.BrokenBarrierError):
        raise failed[0]
    return found
