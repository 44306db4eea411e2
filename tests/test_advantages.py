"""Group-relative advantages: golden numbers and the properties that any correct version has."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.algorithm.advantages import group_normalized

reward = st.sampled_from([0.0, 0.1, 0.91, 1.0, -1.0]) | st.floats(-10, 10)
batch = st.lists(st.tuples(reward, st.integers(0, 4)), min_size=1, max_size=30)


def test_golden() -> None:
    # Group a: 1, 0, 0, 0. Mean 1/4; sample variance (9/16 + 3 * 1/16) / 3 = 1/4, deviation 1/2. So 1.5 and -0.5.
    # Group b: 0.91, 0.1. Mean 0.505; sample variance 2 * 0.405**2, deviation 0.405 * sqrt(2). So +-1/sqrt(2).
    got = group_normalized([1, 0.91, 0, 0, 0.1, 0], ["a", "b", "a", "a", "b", "a"], eps=0.0)
    half = 1 / math.sqrt(2)
    assert got.dtype == torch.float32
    assert got.tolist() == pytest.approx([1.5, half, -0.5, -0.5, -half, -0.5], abs=1e-6)


def test_eps_is_added_to_the_deviation() -> None:
    # 1 and 0: centred +-1/2, deviation 1/sqrt(2); with eps 1 that is 0.5 / 1.70711.
    assert group_normalized([1.0, 0.0], [0, 0], eps=1.0).tolist() == pytest.approx([0.292893, -0.292893], abs=1e-6)


def test_without_division_only_centred() -> None:
    got = group_normalized(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([3, 3, 3, 3]), divide_by_std=False)
    assert got.tolist() == [0.75, -0.25, -0.25, -0.25]


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("rewards", [[0.1] * 8, [0.91] * 7, [1 / 3] * 3, [5.0]])
def test_no_spread_is_exactly_zero(rewards: list[float], divide: bool) -> None:
    assert group_normalized(rewards, [0] * len(rewards), divide_by_std=divide).tolist() == [0.0] * len(rewards)


@given(batch, st.randoms(use_true_random=False), st.booleans())
def test_order_does_not_matter(rows: list[tuple[float, int]], random, divide: bool) -> None:
    shuffled = list(range(len(rows)))
    random.shuffle(shuffled)

    def run(order: list[int]) -> torch.Tensor:
        return group_normalized([rows[i][0] for i in order], [rows[i][1] for i in order], divide_by_std=divide)

    torch.testing.assert_close(run(shuffled), run(list(range(len(rows))))[shuffled], rtol=1e-4, atol=1e-5)


@given(batch, st.booleans())
def test_groups_do_not_touch_each_other(rows: list[tuple[float, int]], divide: bool) -> None:
    rewards, ids = [r for r, _ in rows], [g for _, g in rows]
    together = group_normalized(rewards, ids, divide_by_std=divide)
    for g in set(ids):
        mine = [i for i, other in enumerate(ids) if other == g]
        alone = group_normalized([rewards[i] for i in mine], [g] * len(mine), divide_by_std=divide)
        assert torch.equal(together[mine], alone)


@given(batch)
def test_centred_in_every_group_and_ordered_as_the_rewards(rows: list[tuple[float, int]]) -> None:
    rewards, ids = [r for r, _ in rows], [g for _, g in rows]
    a = group_normalized(rewards, ids)
    assert torch.isfinite(a).all()
    for g in set(ids):
        mine = sorted((rewards[i], a[i].item()) for i in range(len(ids)) if ids[i] == g)
        assert abs(sum(x for _, x in mine)) < 1e-3
        assert all(x[1] <= y[1] + 1e-6 for x, y in itertools.pairwise(mine))


def test_tensor_ids_and_hashable_ids_agree() -> None:
    rewards = torch.tensor([0.0, 1.0, 0.5, 0.25])
    assert torch.equal(group_normalized(rewards, torch.tensor([9, 9, 2, 2])), group_normalized(rewards, list("aabb")))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="equally long"):
        group_normalized([1.0], [0, 0])
    with pytest.raises(ValueError, match="reward 1 is not finite"):
        group_normalized([1.0, float("nan")], [0, 0])


def test_empty_batch() -> None:
    assert group_normalized([], []).shape == (0,)
