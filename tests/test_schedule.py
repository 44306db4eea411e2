"""The learning rate's course, by hand."""

from __future__ import annotations

import itertools
import math

import pytest

from megatron_mmsr1.config import OptimizerConfig
from megatron_mmsr1.megatron.schedule import learning_rate

SIGMOID = OptimizerConfig(lr=2e-6, min_lr=1e-7, schedule="sigmoid", decay_at=45)


def test_the_sigmoid_is_half_way_down_where_it_is_told() -> None:
    """At step 45 ± 45/10 it stands at 1/(1+e^±1) of the fall: MMSearch-R1's k = 1 / (0.1 * 45)."""
    assert learning_rate(SIGMOID, 45, 100) == pytest.approx((2e-6 + 1e-7) / 2)
    assert learning_rate(SIGMOID.model_copy(update={"decay_at": 40}), 44, 100) == pytest.approx(1e-7 + 1.9e-6 / (1 + math.e))
    assert learning_rate(SIGMOID, 0, 100) == pytest.approx(2e-6, rel=1e-4)
    assert learning_rate(SIGMOID, 10**6, 100) == pytest.approx(1e-7)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "sigmoid"])
def test_it_climbs_to_lr_and_never_rises_again(schedule: str) -> None:
    cfg = OptimizerConfig.model_validate({"lr": 1.0, "min_lr": 0.1, "warmup_steps": 4, "schedule": schedule, "decay_at": 20})
    rates = [learning_rate(cfg, s, 50) for s in range(50)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(a >= b for a, b in itertools.pairwise(rates[3:])) and min(rates) >= 0.1
