"""The numbers that a report draws: axes, bands over seeds, held-out points, and how runs are set beside each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_fixtures import make_run

from megatron_mmsr1.config import ProtocolConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.eval.metrics import wilson
from megatron_mmsr1.eval.results import EvalResult, Row
from megatron_mmsr1.report import lines, report
from megatron_mmsr1.report.curves import Line, page_data, spans
from megatron_mmsr1.report.gather import gather, labels

PROTOCOL = ProtocolConfig()


def rows(*rewards: float | None) -> list[dict]:
    """A step an hour, of ten trajectories with 100 sampled tokens each."""
    same = {"tokens/sampled": 100.0, "trajectories": 10}
    return [{"step": i, "time": 5000.0 + 3600 * i, "reward/mean": r} | same for i, r in enumerate(rewards)]


def curve(data: dict, title: str, label: str, line: int = 0) -> tuple[dict, dict]:
    """(the curve, its axes)."""
    (plot,) = [p for p in data["plots"] if p["title"] == title]
    (found,) = [c for c in plot["curves"] if c["label"] == label and c["line"] == line]
    return found, data["axes"][found["x"]]


def test_a_step_s_place_on_each_axis() -> None:
    found, axes = curve(page_data([Line("a", [rows(0.1, None, 0.3)])]), "Reward and accuracy", "reward")
    assert found["y"] == [0.1, 0.3] and "lo" not in found
    assert axes == {"step": [0, 2], "tokens": [1000, 3000], "hours": [0, 2]}


def test_a_step_is_never_rounded() -> None:
    """Other numbers have five digits on the page."""
    made = [{"step": 1234567 + i, "loss": 0.12345678} for i in range(2)]
    for runs in ([made], [made, made]):
        found, axes = curve(page_data([Line("a", runs)]), "Loss", "loss")
        assert axes["step"] == [1234567, 1234568] and found["y"] == [0.12346, 0.12346]


def test_seeds_make_a_band_over_the_steps_that_all_have() -> None:
    data = page_data([Line("3 seeds", [rows(0.0, 0.3), rows(0.3, 0.3), rows(0.6, 0.3, 0.9)])])
    found, axes = curve(data, "Reward and accuracy", "reward")
    assert (found["y"], axes["step"]) == ([0.3, 0.3], [0, 1])
    # The standard deviation of 0, 0.3, 0.6 is 0.3 * sqrt(2 / 3) = 0.24495.
    assert found["lo"] == pytest.approx([0.05505, 0.3], abs=1e-5) and found["hi"] == pytest.approx([0.54495, 0.3], abs=1e-5)


def test_several_runs_are_a_line_each() -> None:
    data = page_data([Line("a", [rows(0.1, 0.2)]), Line("b", [rows(0.5, 0.6, 0.7)])])
    assert data["lines"] == ["a", "b"]
    assert curve(data, "Reward and accuracy", "reward", 1)[0]["y"] == [0.5, 0.6, 0.7]


def test_counts_become_calls_a_trajectory_and_no_metric_is_lost() -> None:
    made = [r | {"tool/calls_text": 5, "mine/x": 1.0} for r in rows(0.1, 0.2)]
    made[1]["tool/calls_image"] = 10
    data = page_data([Line("a", [made])])
    assert curve(data, "Calls a trajectory", "text")[0]["y"] == [0.5, 0.5]
    assert curve(data, "Calls a trajectory", "image")[0]["y"] == [0.0, 1.0]  # left out of a row: there was none
    assert curve(data, "Calls a trajectory", "all")[0]["y"] == [0.5, 1.5]
    assert [p["rare"] for p in data["plots"] if p["title"] == "mine"] == [True]


def test_a_count_that_a_row_leaves_out_is_0_and_a_mean_is_nothing() -> None:
    made = rows(0.1, 0.2, 0.3)
    made[0] |= {"tool/timeout": 2, "tool/seconds": 0.5, "kind/text/acc": 1.0, "kind/text/crop_share": 0.5}
    made[2] |= {"tool/timeout": 1, "tool/seconds": 0.7, "kind/text/acc": 1.0}
    data = page_data([Line("a", [made])])
    assert curve(data, "Calls that brought nothing", "timeout")[0]["y"] == [2, 0, 1]
    found, axes = curve(data, "Seconds a call", "mean")
    assert (found["y"], axes["step"]) == ([0.5, 0.7], [0, 2])
    found, axes = curve(data, "kind/text", "crop_share")
    assert (found["y"], axes["step"]) == ([0.5, 0.0], [0, 2])  # step 1 asked no such question


def test_held_out_points_have_their_interval_and_the_oracle_its_level() -> None:
    def result(name: str, accuracy: float, **meta: int) -> EvalResult:
        row = Row("overall", 10, accuracy, 0.5, 1.0, 0.5, 0.5)
        return EvalResult(name, [row], [], dict(meta))

    found = [result("before", 0.2, weights=0), result("step_000001", 0.5, weights=1), result("after", 0.8, weights=2)]
    data = page_data([Line("a", [rows(0.1, 0.2)], [[*found, result("oracle", 1.0)]])])
    title = "Held-out accuracy, with its 95 % interval"
    points, axes = curve(data, title, "10 questions")
    assert axes == {"step": [0, 1, 2], "tokens": [0, 1000, 2000], "hours": [0, 0, 1]}
    assert points["y"] == [0.2, 0.5, 0.8]
    # Wilson's interval of 8 of 10: (0.8 + 0.19208 +- 1.96 * sqrt(0.016 + 0.009604)) / 1.38416 = 0.4902 to 0.9433.
    assert (points["lo"][2], points["hi"][2]) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert curve(data, title, "oracle")[0]["y"] == [1.0, 1.0]


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_wilson_s_interval_holds_the_share_and_stays_a_share(n: int) -> None:
    for k in range(0, n + 1, max(1, n // 10)):
        low, high = wilson(k / n, n)
        assert 0 <= low <= k / n <= high <= 1 and high - low > 0
        assert wilson(1 - k / n, n) == pytest.approx((1 - high, 1 - low))


def test_an_alarm_s_times() -> None:
    made = [{"step": i, "alarm/entropy": float(i in (1, 2, 5))} for i in range(6)]
    assert spans(made) == [
        {"name": "entropy", "from": 1, "to": 2, "stands": False},
        {"name": "entropy", "from": 5, "to": 5, "stands": True},
    ]


def test_runs_of_one_experiment_may_be_drawn_as_one_others_not(tmp_path: Path) -> None:
    one, _ = make_run(tmp_path, name="a", seed=0, steps=4)
    two, _ = make_run(tmp_path, name="b", seed=1, steps=4)
    both = [gather(one), gather(two)]
    assert [line.label for line in lines(both, seeds=False)] == ["", ""]  # `build` names them
    (line,) = lines(both, seeds=True)
    assert len(line.runs) == len(line.results) == 2
    assert report([one, two], seeds=True) == one / "compare.html"
    both[1].cfg.optimizer.lr = 0.5
    with pytest.raises(UsageError, match=r"more than its seed: optimizer\.lr\."):
        lines(both, seeds=True)


def test_names_are_as_short_as_tells_runs_apart(tmp_path: Path) -> None:
    assert labels([Path("x/runs/a"), Path("y/runs/b")]) == ["a", "b"]
    assert labels([Path("x/runs/a"), Path("y/runs/a")]) == ["x/runs/a", "y/runs/a"]
    with pytest.raises(UsageError, match="named twice"):
        labels([tmp_path, tmp_path])
