"""Which trajectories a step trains on: what each leader rolls out, and which dump is used again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1 import config
from megatron_mmsr1.config.affects import fingerprint
from megatron_mmsr1.data.store import ImageStore
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.rollout.dump import dump_files, read_dump, write_dump
from megatron_mmsr1.run.kept import Kept
from megatron_mmsr1.run.rollouts import Rollouts, share
from megatron_mmsr1.trajectory import ImageRef, Trajectory

said: list[str] = []  # what the rollouts warned of


@given(st.lists(st.integers(0, 5), min_size=1, max_size=24), st.integers(1, 4))
def test_groups_are_distinct_over_all_leaders(rows: list[int], dp_size: int) -> None:
    """A step that crosses an epoch's border may hold a row twice: (row, copy) names one group on one leader only."""
    rows = rows[: len(rows) // dp_size * dp_size]
    shares = [share(rows, rank, dp_size) for rank in range(dp_size)]
    assert [i for mine, _ in shares for i in mine] == rows
    groups = [pair for mine, copies in shares for pair in zip(mine, copies, strict=True)]
    assert len(set(groups)) == len(groups)


@given(st.lists(st.integers(0, 5), min_size=4, max_size=24), st.sampled_from([1, 2, 4]))
def test_groups_do_not_depend_on_how_many_leaders_there_are(rows: list[int], dp_size: int) -> None:
    """So that a run resumed with other parallelism draws the same samples: their seeds come from (row, copy)."""
    rows = rows[: len(rows) // dp_size * dp_size]
    one, copies = share(rows, 0, 1)
    many = [pair for rank in range(dp_size) for pair in zip(*share(rows, rank, dp_size), strict=True)]
    assert many == list(zip(one, copies, strict=True))


class Leader:
    """One of `dp_size` leaders as the others see it: `sent` is what each of them gave to the last gathering."""

    def __init__(self, dp_rank: int, sent: list[list[Any]]) -> None:
        self.rank = self.dp_rank = dp_rank
        self.dp_size, self.is_leader, self.sent = len(sent), True, sent

    def barrier(self) -> None: ...

    def max(self, values: list[float]) -> list[float]:
        return values

    def broadcast_object(self, value: Any, source: int = 0) -> Any:
        return value

    def gather_from_leaders(self, local: list[Any]) -> list[Any]:
        self.sent[self.dp_rank] = local
        return [x for part in self.sent for x in part]

    def distribute(self, local: list[Trajectory], counts: list[int], owners: list[int]) -> list[Trajectory]:
        first = sum(counts[: self.dp_rank])
        return [t for t, owner in zip(local, owners[first:], strict=False) if owner == self.dp_rank]


class Worker:
    """Answers every prompt with its own number, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def generate(self, prompts: list[Any], *, indices: list[int], **_: Any) -> list[Trajectory]:
        self.asked += 1
        out = []
        for i in indices:
            t = Trajectory(f"p{i}", f"0/{i}", 0, "q", ["a"])
            t.append("prompt", [1, 2], "q")
            t.append("assistant", [3] * (i + 1), "a", logprobs=[-1.0] * (i + 1))
            t.reward = 1.0
            out.append(t)
        return out


def rollouts(out: Path, worker: Worker, *, dp_rank: int = 0, sent: list[list[Any]] | None = None, **train: Any) -> Rollouts:
    cfg = config.parse({"model": {"path": "m"}, "output": str(out), "train": train})
    sampler, watch = (
        SimpleNamespace(take=lambda n, step: [0, 1, 2, 3]),
        SimpleNamespace(identity=dict, heard=None, paused_s=0.0, pauses_of_all=lambda _: None),
    )
    ranks = Leader(dp_rank, sent if sent is not None else [[]])
    return Rollouts(cfg, ranks, list(range(4)), sampler, worker, watch, said.append, Kept(cfg, ranks, out))  # type: ignore[arg-type]


def test_every_rank_sees_outlines_and_only_the_leader_whole_trajectories(tmp_path: Path) -> None:
    made = rollouts(tmp_path, Worker())
    outlines = made.take(0)
    assert [(t.prompt_id, len(t), len(t.token_ids)) for t in outlines] == [(f"p{i}", 3 + i, 0) for i in range(4)]
    assert [len(t.token_ids) for t in made.local] == [3, 4, 5, 6]
    shares = made.shares([outlines[3], outlines[1]], [0, 0])
    assert [(t.prompt_id, len(t.token_ids)) for t in shares] == [("p3", 6), ("p1", 4)]
    assert [len(t.token_ids) for t in made.shares([outlines[3], outlines[1]], [1, 0])] == [0, 4]


def test_a_dump_that_fits_is_used_again_and_one_of_another_configuration_is_not(tmp_path: Path) -> None:
    worker = Worker()
    first = rollouts(tmp_path, worker)
    first.take(0)
    again = rollouts(tmp_path, worker)
    assert again.take(0) == first._outlines and not again.generated and worker.asked == 1
    meta = {"weights": 0, "config": "of another", "search": {}}
    write_dump(tmp_path / "rollouts", 0, first.local, meta)
    assert rollouts(tmp_path, worker).take(0) and worker.asked == 2


def test_rollouts_without_a_reward_are_made_anew(tmp_path: Path) -> None:
    worker = Worker()
    first = rollouts(tmp_path, worker)
    first.take(0)
    for t in first.local:
        t.reward = None
    write_dump(tmp_path / "rollouts", 0, first.local, {"weights": 0, "config": fingerprint(first.cfg), "search": {}})
    again = rollouts(tmp_path, worker)
    assert all(t.reward == 1.0 for t in again.take(0)) and again.generated and worker.asked == 2


def with_pictures(out: Path) -> None:
    """A run's dump of step 0 whose trajectories have two pictures, one of which has gone from the run's images."""
    first = rollouts(out, Worker())
    first.take(0)
    images = ImageStore(out / "images")
    kept, lost = images.put(b"kept"), images.put(b"lost")
    (out / "images" / lost[:2] / f"{lost}.png").unlink()
    for t in first.local:
        t.images = [ImageRef(kept, (1, 4, 4)), ImageRef(lost, (1, 4, 4))]
    write_dump(out / "rollouts", 0, first.local, {"weights": 0, "config": fingerprint(first.cfg), "search": {}})


def test_rollouts_whose_pictures_are_gone_are_made_anew_and_it_is_said(tmp_path: Path) -> None:
    """Such a resume once ended in the middle of the step, with the hash of a picture."""
    with_pictures(tmp_path)
    worker = Worker()
    said.clear()
    again = rollouts(tmp_path, worker)
    assert not any(t.images for t in again.take(0)) and again.generated and worker.asked == 1
    assert said == [
        f"step 0: 1 pictures of its rollouts in {tmp_path}/rollouts are missing from {tmp_path}/images: the step is rolled out "
        "again"
    ]


def test_a_replay_whose_pictures_are_gone_says_what_to_copy(tmp_path: Path) -> None:
    with_pictures(tmp_path / "old")
    replay = rollouts(tmp_path / "new", Worker(), mode="train-only", replay=str(tmp_path / "old" / "rollouts"))
    with pytest.raises(RunError, match=r"1 pictures of its rollouts .*old/images: copy images/ of that run there"):
        replay.take(0)


def test_each_leader_dumps_its_own_and_other_numbers_of_leaders_read_it(tmp_path: Path) -> None:
    sent: list[list[Any]] = [[], []]
    for rank in (0, 1):
        rollouts(tmp_path, Worker(), dp_rank=rank, sent=sent, ranks=2).take(0)
    assert len(dump_files(tmp_path / "rollouts", 0)) == 2
    assert [t.prompt_id for t in read_dump(tmp_path / "rollouts", 0)[0]] == ["p0", "p1", "p2", "p3"]
    worker = Worker()
    one = rollouts(tmp_path, worker)
    assert [t.prompt_id for t in one.take(0)] == ["p0", "p1", "p2", "p3"] and worker.asked == 0


def test_the_pauses_of_every_leader_count() -> None:
    """A step waits for the slowest leader, so the longest pause of any is the step's; rank 0 logs it."""
    from megatron_mmsr1 import config
    from megatron_mmsr1.run.search_watch import SearchWatch

    watch = SearchWatch(None, config.parse({"model": {"path": "m"}}), print, print)
    found = []
    for mine, longest in ((0.0, 4.0), (3.0, 9.0), (3.0, 9.0)):  # seconds since the workers began: ours, any leader's
        watch.paused_s = mine
        watch.pauses_of_all(longest)
        found.append(watch.step(0, [])["search/paused_s"])
    assert found == [4.0, 5.0, 0.0]
