"""The alarms of a run: when each begins and is over, that a resume changes nothing, and that a good run is not alarmed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1 import config
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.eval.metrics import rollout_metrics
from megatron_mmsr1.run.alarms import ALARMS, judge, rows_needed
from megatron_mmsr1.run.logs import RunLog, read_metrics
from megatron_mmsr1.run.search_watch import SearchWatch
from megatron_mmsr1.run.step_log import StepLog
from megatron_mmsr1.trajectory import Status, Trajectory

type Row = dict[str, float | None]
# The metrics that alarms read, of 60 steps of configs/atlas.yaml at seed 0 (train.steps=60), to four digits.
RECORDED = Path(__file__).parent / "metrics" / "atlas.jsonl"
CFG = config.parse({"model": {"path": "-"}, "logging": {"tensorboard": False}})
HEALTHY: Row = {
    "trajectories": 100,
    "status/invalid": 2,
    "entropy": 0.3,
    "groups/equal": 0.4,
    "tokens/sampled": 200.0,
    "search/share": 0.5,
    "logprob_diff_mean": 0.001,
    "grad_norm": 1.0,
    "loss": 0.0,
}
# Alarm -> a step that begins it, and whether one such step is enough.
BAD: dict[str, tuple[Row, bool]] = {
    "invalid_turns": ({"status/invalid": 26}, False),
    "entropy": ({"entropy": 0.009}, False),
    "equal_groups": ({"groups/equal": 0.95}, False),
    "length": ({"tokens/sampled": 99.0}, False),
    "calls": ({"search/share": 0.01}, False),
    "logprob_gap": ({"logprob_diff_mean": 0.06}, True),
    "grad_norm": ({"grad_norm": 8.1}, True),
    "loss": ({"loss": -0.081}, True),  # eight times the 0.01 below which a distance is noise
    "skipped": ({"skipped_updates": 1.0}, True),
    "checkpoint": ({"checkpoint_failures": 1.0}, True),
}


def standing(rows: Sequence[Mapping[str, float | None]], cfg: RunConfig = CFG) -> list[set[str]]:
    """Which alarms stand after each of these steps, told as a run tells them."""
    told: list[Row] = []
    out: list[set[str]] = []
    for row in rows:
        told = [*told, {**row}][-rows_needed(cfg) :]
        metrics, begun, over = judge(told, cfg)
        now = {n.removeprefix("alarm/") for n, v in metrics.items() if n.startswith("alarm/") and v}
        before = out[-1] if out else set[str]()
        assert (set(begun), set(over)) == (now - before, before - now)
        assert all(begun.values()) and metrics["alarms"] == len(now)
        told[-1] |= metrics
        out.append(now)
    return out


def test_the_recorded_atlas_run_is_not_alarmed() -> None:
    rows: list[Row] = [*read_metrics(RECORDED)]
    assert len(rows) == 60 and set(HEALTHY) <= {k for r in rows for k in r}
    assert not set().union(*standing(rows))


@pytest.mark.parametrize("name", [a.name for a in ALARMS])
def test_each_begins_after_its_steps_and_is_over_after_as_many(name: str) -> None:
    change, sudden = BAD[name]
    found = standing([HEALTHY] * 20 + [HEALTHY | change] * 4 + [HEALTHY] * 4)
    begins, over = (20 if sudden else 22), 26  # over once three steps in a row are as before
    assert found == [{name} if begins <= i < over else set() for i in range(28)]


@pytest.mark.parametrize(
    ("change", "name"), [({"tokens/sampled": 401.0}, "length"), ({"search/share": 0.99}, "calls"), ({"loss": 0.081}, "loss")]
)
def test_the_other_direction_alarms_too(change: Row, name: str) -> None:
    assert standing([HEALTHY] * 20 + [HEALTHY | change] * 3)[-1] == {name}


def test_one_bad_step_alone_is_not_said_unless_it_is_sudden() -> None:
    bad: Row = HEALTHY
    for change, _ in BAD.values():
        bad = bad | change
    found = standing([HEALTHY] * 20 + [bad] + [HEALTHY] * 5)
    assert set().union(*found) == {name for name, (_, sudden) in BAD.items() if sudden}


def test_a_new_level_is_the_usual_one_once_the_window_is_full_of_it() -> None:
    """Lengths that have doubled and stay are said once, and are then what further changes are measured against."""
    found = standing([HEALTHY] * 20 + [HEALTHY | {"tokens/sampled": 500.0}] * 40)
    assert found[22] == {"length"} and not found[-1]


def test_thresholds_can_be_switched_off_and_change_nothing_else() -> None:
    off: dict[str, Any] = {"invalid_turns": 1, "entropy": 0, "equal_groups": 1, "calls_below": 0, "calls_above": 1}
    cfg = config.parse({"model": {"path": "-"}, "alarms": off})
    worst = HEALTHY | {"status/invalid": 100, "entropy": 0.0, "groups/equal": 1.0}
    for share in (0.0, 1.0):
        assert not set().union(*standing([worst | {"search/share": share}] * 30, cfg))


def test_a_run_that_may_call_no_tool_is_not_told_that_it_calls_none() -> None:
    cfg = config.parse({"model": {"path": "-"}, "protocol": {"image_searches": 0, "text_searches": 0}})
    assert not standing([HEALTHY | {"search/share": 0.0}] * 5, cfg)[-1]


def test_demonstrations_are_judged_by_loss_and_gradient_alone() -> None:
    """A policy that is sure of its demonstrations is what a cold start is for."""
    cfg = config.parse({"model": {"path": "-"}, "algorithm": {"name": "sft"}})
    row: Row = {"loss": 0.5, "entropy": 0.001, "grad_norm": 1.0}
    assert standing([row] * 20 + [row | {"grad_norm": 9.0, "loss": 5.0}], cfg)[-1] == {"grad_norm", "loss"}


VALUES = st.one_of(st.none(), st.just(float("nan")), st.floats(-1e30, 1e30), st.floats(0, 1))
ROWS = st.lists(st.dictionaries(st.sampled_from(sorted(HEALTHY)), VALUES), min_size=1, max_size=60)


@given(ROWS)
def test_whatever_the_metrics_are_each_alarm_is_said_once_and_then_over(rows: list[Row]) -> None:
    """Nothing raises, also where values are missing or not finite; beginnings and ends take turns (`standing` checks it); and
    none begins before there are as many steps as it needs."""
    found = standing(rows)
    slow = {name for name, (_, sudden) in BAD.items() if not sudden}
    for at in found[: CFG.alarms.steps - 1]:
        assert not at & slow


@given(st.lists(st.sampled_from([*BAD, ""]), max_size=40), st.integers(0, 60))
def test_a_resume_says_nothing_again_and_forgets_nothing(kinds: list[str], at: int) -> None:
    """What stands is told from the rows alone: cut anywhere, a run goes on as if it had not been."""
    rows: list[Row] = [HEALTHY] * 15 + [HEALTHY | BAD[k][0] if k else HEALTHY for k in kinds]
    told: list[Row] = []
    for i, row in enumerate(rows):
        if i == at:  # the rows of the file, in their JSON
            told = json.loads(json.dumps(told))
        told = [*told, row]
        told[-1] = row | judge(told[-rows_needed(CFG) :], CFG)[0]
    assert [{n for n in BAD if r[f"alarm/{n}"]} for r in told] == standing(rows)


def test_a_run_says_it_once_and_its_end_and_counts_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the writers of a run, with a resume in the middle of the alarm."""

    def life(first: int, gaps: list[float]) -> None:
        log = RunLog(tmp_path, CFG, resume_step=first)
        steps = StepLog(CFG, log, SearchWatch(None, CFG, log.warn, log.info), skipped_rows=0)
        for i, gap in enumerate(gaps):
            steps.write(first + i, {"logprob_diff_mean": gap}, [], trained=0, seconds={"rollout": 1.0}, generated=False)
        log.close()

    life(0, [0.0, 0.2, 0.2])
    life(3, [0.2, 0.0, 0.0, 0.0])
    lines = [line for line in (tmp_path / "run.log").read_text().splitlines() if "alarm" in line]
    assert len(lines) == 2 and "step 1: alarm logprob_gap begins: trainer and engine log-probs differ by 2.00e-01" in lines[0]
    assert "warning" in lines[0] and lines[1].endswith("step 6: alarm logprob_gap is over") and "warning" not in lines[1]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["alarm/logprob_gap"] for r in rows] == [0, 1, 1, 1, 1, 1, 0] and [r["alarms"] for r in rows][1:6] == [1] * 5


def test_groups_of_one_reward_are_counted() -> None:
    """Of four groups two have one reward, one has two; a group of one rollout and one that failed say nothing."""

    def make(group: str, reward: float | None) -> Trajectory:
        return Trajectory("p", group, 0, "q", ["a"], status=Status.ANSWERED, reward=reward)

    batch = [make(g, r) for g, r in (("a", 1), ("a", 1), ("b", 0), ("b", 0), ("c", 0), ("c", 1), ("d", 1), ("d", None))]
    assert rollout_metrics(batch, CFG.protocol)["groups/equal"] == pytest.approx(2 / 3)
