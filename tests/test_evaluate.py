"""Metrics and evaluation: both search ratios, failures apart, tables that say the same everywhere."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from megatron_mmsr1.config import ProtocolConfig
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.eval.metrics import by_kind, calls_allowed, rollout_metrics
from megatron_mmsr1.eval.results import EvalResult, compare, load_all, of_model, save_all, table
from megatron_mmsr1.trajectory import Status, ToolCall, ToolStatus, Trajectory

PROTOCOL = ProtocolConfig()  # 3 rounds, 1 image and 2 text searches: two calls may be made


def make(
    *calls: ToolStatus,
    kind: str = "",
    category: str = "",
    acc: float = 1.0,
    reward: float | None = 1.0,
    status: Status = Status.ANSWERED,
) -> Trajectory:
    """A conversation of 3 prompt tokens, and for each call 2 sampled and 4 observed ones, then 2 sampled."""
    t = Trajectory("p", "g", 0, "q", ["a"], category=category, extra={"kind": kind} if kind else {})
    t.append("prompt", [1] * 3, "q")
    for s in calls:
        t.append("assistant", [2] * 2, "s", logprobs=[0.0] * 2, action="text_search")
        t.append("tool", [3] * 4, "r", tool=ToolCall("text", "query", s, seconds=0.5))
    t.append("assistant", [2] * 2, "a", logprobs=[0.0] * 2, action="answer")
    t.status, t.reward = status, reward
    if reward is not None:
        t.reward_parts = {"acc": acc, "format": 1.0}
    return t


def test_both_search_ratios() -> None:
    # One response with no call, one with one, one with two: 2 of 3 search; 3 calls of 3 x 2 allowed.
    m = rollout_metrics([make(), make(ToolStatus.OK), make(ToolStatus.OK, ToolStatus.EMPTY)], PROTOCOL)
    assert m["search/share"] == pytest.approx(2 / 3)
    assert m["search/ratio"] == pytest.approx(3 / 6)
    assert (m["turns/1"], m["turns/2"], m["turns/3"], m["turns/mean"]) == (1, 1, 1, 2)
    assert (m["tool/ok"], m["tool/empty"], m["tool/calls_text"]) == (2, 1, 3)
    # 5, 11 and 17 tokens; 2, 4 and 6 sampled; 0, 4 and 8 observed.
    assert (m["tokens/trajectory"], m["tokens/sampled"], m["tokens/observed"]) == (11, 4, 4)


def test_calls_allowed_is_bounded_by_rounds_and_by_limits() -> None:
    assert calls_allowed(PROTOCOL) == 2
    assert calls_allowed(ProtocolConfig(max_rounds=10)) == 3
    assert calls_allowed(ProtocolConfig(image_searches=0, text_searches=0)) == 1  # never a division by zero


def test_infrastructure_is_counted_apart() -> None:
    dead = make(reward=None, status=Status.ENGINE_ERROR)
    slow = make(ToolStatus.TIMEOUT, reward=None, status=Status.TOOL_ERROR)
    m = rollout_metrics([make(), make(acc=0.0, reward=0.1), dead, slow], PROTOCOL)
    assert m["reward/mean"] == pytest.approx(0.55)  # of the two that were scored
    assert m["reward/std"] == pytest.approx(0.45)
    assert m["reward/acc"] == 0.5
    assert (m["infrastructure/trajectories"], m["infrastructure/calls"], m["infrastructure/share"]) == (2, 1, 0.5)
    assert (m["status/engine_error"], m["status/tool_error"], m["status/answered"]) == (1, 1, 2)
    assert m["trajectories"] == 4


def test_nothing_scored_makes_no_reward_up() -> None:
    m = rollout_metrics([make(reward=None, status=Status.ABORTED)], PROTOCOL)
    assert "reward/mean" not in m and m["infrastructure/share"] == 1
    assert rollout_metrics([], PROTOCOL) == {"trajectories": 0}


def test_by_category_and_by_kind() -> None:
    m = rollout_metrics(
        [
            make(kind="known", category="search_free"),
            make(ToolStatus.OK, kind="known", category="search_free", acc=0.0, reward=0.1),
            make(ToolStatus.OK, kind="text", category="search_required"),
        ],
        PROTOCOL,
    )
    assert (m["category/search_free/search_share"], m["category/search_free/acc"]) == (0.5, 0.5)
    assert (m["category/search_required/search_share"], m["category/search_required/search_ratio"]) == (1.0, 0.5)
    assert m["kind/known/reward"] == pytest.approx(0.55)
    assert m["kind/text/acc"] == 1


def test_kinds_come_in_the_order_of_a_story() -> None:
    kinds = ["zebra", "both", "text", "image", "picture", "known", "apple"]
    assert list(by_kind(make(kind=k) for k in kinds)) == ["known", "picture", "image", "text", "both", "apple", "zebra"]
    assert list(by_kind([make(category="search_free"), make()])) == ["search_free", "all"]


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=12))
def test_metrics_stay_in_their_bounds(batch: list[tuple[int, bool]]) -> None:
    ts = [make(*[ToolStatus.OK] * calls, acc=float(right), reward=float(right)) for calls, right in batch]
    m = rollout_metrics(ts, PROTOCOL)
    assert 0 <= m["search/ratio"] <= m["search/share"] <= 1
    assert m["reward/acc"] == sum(right for _, right in batch) / len(batch)
    assert sum(v for k, v in m.items() if k.startswith("turns/") and k != "turns/mean") == len(batch)


# ------------------------------------------------------------------------------------------------------------- evaluation
def result(name: str) -> EvalResult:
    return EvalResult.from_trajectories(
        name,
        [
            make(kind="known", category="search_free"),
            make(ToolStatus.OK, kind="text", category="search_required", acc=0.0, reward=0.1),
            make(kind="text", category="search_required", reward=None, status=Status.ENGINE_ERROR),
        ],
        PROTOCOL,
        weights=80,
    )


def test_rows_by_kind_by_category_and_overall() -> None:
    r = result("after")
    assert [row.kind for row in r.rows] == ["known", "text", "overall"]
    assert [row.kind for row in r.categories] == ["search_free", "search_required"]
    assert (r.overall.n, r.overall.failed, r.overall.accuracy, r.overall.search_share) == (2, 1, 0.5, 0.5)
    assert r.overall.search_ratio == 0.25
    text = r.row("text")
    assert text is not None and (text.n, text.failed, text.accuracy) == (1, 1, 0.0)
    assert r.row("search_free") == r.categories[0]
    assert r.row("nothing") is None
    assert r.line() == (
        "evaluation after: 2 questions, 1 failed in the engine or a tool, accuracy 50.0%, reward 0.550 "
        "(known 100% right, 0% search; text 0% right, 100% search)"
    )


def test_an_evaluation_of_nothing_is_no_zero() -> None:
    with pytest.raises(RunError, match="none of 1 trajectories was scored"):
        EvalResult.from_trajectories("before", [make(reward=None, status=Status.ENGINE_ERROR)], PROTOCOL)


def test_files_come_back_in_the_order_of_the_story(tmp_path: Path) -> None:
    for name in ("after", "step_000040", "before", "model"):
        result(name).save(tmp_path / f"{name}.json")
    save_all([result("oracle"), result("never")], tmp_path / "policies.json")
    names = [r.name for r in load_all(tmp_path)]
    assert names == ["before", "step_000040", "after", "model", "oracle", "never"]
    assert load_all(tmp_path)[0] == result("before")
    assert load_all(tmp_path / "none") == []


@pytest.mark.parametrize("name", ["before", "policies"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.json").write_text('{"name": "before", "ro')
    with pytest.raises(RunError, match=rf"{name}\.json"):
        load_all(tmp_path)


def test_the_terminal_shows_every_measure() -> None:
    results = [result("before"), result("after")]
    measures = {(m.section, m.title): m.cells for m in compare(results)}
    assert measures["all questions", "accuracy"] == ["50.0%", "50.0%"]
    assert measures["all questions", "questions"] == ["2 + 1 failed"] * 2
    assert measures["by kind: % right / % that search", "known"] == ["100 / 0"] * 2
    assert measures["by category: % right / % that search", "search-required"] == ["0 / 100"] * 2
    out = io.StringIO()
    Console(file=out, width=80).print(table(results))
    for m in compare(results):
        assert m.title in out.getvalue()
        for cell in m.cells:
            assert cell.replace(" / ", "/") in out.getvalue()


def test_without_kinds_there_is_only_the_whole() -> None:
    r = EvalResult.from_trajectories("x", [make()], PROTOCOL)
    assert {m.section for m in compare([r])} == {"all questions"}


def test_the_last_evaluation_of_other_weights_is_refused() -> None:
    """A run that was extended from 80 to 103 steps, as it was found: its "after" is still of step 80."""
    before, step, after = result("before"), result("step_000040"), result("after")
    for r in (before, step, after):
        r.meta = {"weights": 80, "key": {"weights": "aaaa"}}
    assert of_model([before, step, after], 80, "aaaa") == ([before, step, after], [])
    kept, refused = of_model([before, step, after], 103)
    assert kept == [before, step]
    assert len(refused) == 1 and "step 80" in refused[0] and "step 103" in refused[0]
    kept, refused = of_model([before, after], 80, "bbbb")  # the same number of steps, other weights: trained again
    assert kept == [before] and "aaaa" in refused[0] and "bbbb" in refused[0]
