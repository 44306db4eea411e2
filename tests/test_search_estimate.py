"""What a run's searches will come to: numbers worked out by hand, and every note where it belongs and nowhere else."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1 import config
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.server.compose import registry
from megatron_mmsr1.search.server.estimate import STALE_DAYS, estimate

TODAY = datetime.date(2026, 6, 1)
PRICED = {"usd_per_1000": 15, "price_as_of": "2026-05-01"}
LIVE: dict[str, Any] = {
    "text": {"backend": "serpapi", "concurrency": 64, **PRICED},
    "image": {"backend": "serpapi_lens", "concurrency": 32, **PRICED},
    "read": {"backend": "jina", "concurrency": 128, "usd_per_1000": 0},
    "summarise": {"backend": "openai", "concurrency": 256, "usd_per_1000": 0},
    "budget": {"run_usd": 1e6},
}


def run(search: dict[str, Any] | None = None, **more: Any) -> RunConfig:
    raw = {
        "model": {"path": "-"},
        "data": {"prompts_per_step": 512, "group_size": 8},
        "train": {"steps": 50},
        "rollout": {"tool_concurrency": 128},
        "search": LIVE if search is None else search,
    }
    return config.parse({**raw, **more}, "test")


def changed(**sections: dict[str, Any]) -> dict[str, Any]:
    return {k: {**LIVE.get(k, {}), **sections.get(k, {})} for k in {*LIVE, *sections}}


def notes(search: dict[str, Any] | None = None, **more: Any) -> list[str]:
    return estimate(run(search, **more), TODAY).notes


def test_the_papers_run() -> None:
    got = estimate(run(), TODAY)
    stages = {s.kind: s for s in got.stages}
    assert (got.steps, got.trajectories) == (50, 4096)  # 512 x 8
    # 4,096 x 0.7 text searches a trajectory, a fifth of which the store answers.
    assert stages["text"].calls == pytest.approx(2293.76)
    # A prompt's eight rollouts share one image search, and none of them asks with 0.5 ** 8: 512 x (1 - 1/256).
    assert stages["image"].calls == pytest.approx(510)
    # Five pages a text search, each read and summarised.
    assert stages["read"].calls == stages["summarise"].calls == pytest.approx(11_468.8)
    # 15 dollars a thousand: 2.29376 x 15 and 0.51 x 15; the others are free.
    assert [stages[k].usd for k in ("text", "image", "read", "summarise")] == pytest.approx([34.4064, 7.65, 0, 0])
    # Calls x seconds each / how many at once: 2,293.76 x 1.5 / 64; 510 x 3 / 32; 11,468.8 x 2 / 128; 11,468.8 x 3 / 256.
    assert [stages[k].busy_s for k in ("text", "image", "read", "summarise")] == pytest.approx([53.76, 47.8125, 179.2, 134.4])
    assert got.calls == pytest.approx(50 * (2293.76 + 510 + 2 * 11_468.8))
    assert got.usd == pytest.approx(50 * (34.4064 + 7.65))
    assert got.hours == pytest.approx(50 * 179.2 / 3600)  # the slowest stage; the others go on beside it
    assert got.notes == []


def test_a_rate_limit_is_slower_than_a_queue() -> None:
    got = estimate(run(changed(text={"per_second": 10})), TODAY)
    assert next(s.busy_s for s in got.stages if s.kind == "text") == pytest.approx(229.376)


@pytest.mark.parametrize(
    ("assumed", "text", "image"),
    [
        ({"text_per_trajectory": 0, "image_per_trajectory": 0}, 0, 0),
        ({"text_cached": 1}, 0, 510),
        ({"text_cached": 0, "image_per_trajectory": 1}, 4096 * 0.7, 512),
        ({"image_per_trajectory": 3}, 2293.76, 512),
    ],
)
def test_the_assumptions_are_the_configs(assumed: dict[str, float], text: float, image: float) -> None:
    got = {s.kind: s.calls for s in estimate(run(changed(estimate=assumed)), TODAY).stages}
    assert (got["text"], got["image"], got["read"]) == pytest.approx((text, image, 5 * text))


def test_what_is_local_costs_nothing() -> None:
    for search in ({}, {"corpus": "build/world"}, {"image": {"backend": "descriptor"}, "read": {"backend": "corpus"}}):
        got = estimate(run(search), TODAY)
        assert (got.stages, got.calls, got.usd, got.hours) == ([], 0, 0, 0)
        assert got.notes == ["every backend is local: nothing is billed and nothing leaves the machine"]
    got = estimate(run({**LIVE, "read": {"backend": "none"}, "summarise": {"backend": "extractive"}}), TODAY)
    assert [s.kind for s in got.stages] == ["text", "image"]


LOCAL = {"bm25", "descriptor", "embedding", "recorded", "corpus", "extractive"}


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k in ("text", "image", "read", "summarise") for n in registry(k).names()]
)
def test_every_backend_is_known_to_be_local_or_not(kind: str, name: str) -> None:
    got = estimate(run({kind: {"backend": name}}), TODAY)
    assert [s.backend for s in got.stages] == ([] if name in LOCAL else [name])


def test_a_server_of_its_own_and_a_replay() -> None:
    (note,) = notes({"url": "http://search:8100"})
    assert "search.url=http://search:8100" in note and "its own config" in note  # not: nothing is billed
    got = estimate(run({**LIVE, "mode": "replay-strict"}), TODAY)
    assert (got.stages, got.usd, len(got.notes)) == ([], 0, 1) and "replay-strict" in got.notes[0]


# ------------------------------------------------------------------------------------------------------------------- notes
def test_an_old_price_is_doubted() -> None:
    old = (TODAY - datetime.timedelta(days=STALE_DAYS)).isoformat()
    older = (TODAY - datetime.timedelta(days=STALE_DAYS + 1)).isoformat()
    assert notes(changed(text={"price_as_of": old})) == []
    assert notes(changed(text={"price_as_of": older})) == [f"search.text: the price is of {older}; look it up again"]


def test_a_missing_price_is_said_where_somebody_bills() -> None:
    search = changed()
    del search["text"]["usd_per_1000"], search["text"]["price_as_of"]
    (note,) = notes(search)
    assert "search.text: serpapi has no price" in note and "usd_per_1000" in note
    assert estimate(run(search), TODAY).usd == pytest.approx(50 * 7.65)
    for free in ("searxng", "ddgs", "retrieve"):
        assert notes({**search, "text": {"backend": free, "concurrency": 64}}) == []


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ({"run_usd": 2102.9}, None),  # 50 x 42.0564 = 2,102.82 are needed
        ({"run_usd": 1051.41}, "search.budget.run_usd=1051.41 will be reached, at about step 25 of 50: 2,103 are needed"),
        ({"run_calls": 1_287_069}, None),  # 50 x 25,741.36 = 1,287,068
        ({"run_calls": 128_707}, "search.budget.run_calls=128707 will be reached, at about step 5 of 50: 1.287e+06 are needed"),
        ({"step_usd": 42.06}, None),
        ({"step_usd": 42}, "search.budget.step_usd=42 will be reached: 42.06 are needed"),
        ({"step_calls": 25_742}, None),
        ({"step_calls": 100}, "search.budget.step_calls=100 will be reached: 2.574e+04 are needed"),
        ({"day_usd": 1}, None),  # nobody knows how many days it takes; but something stops it
        ({"run_usd": 0}, "search.budget.run_usd=0 will be reached, at about step 0 of 50"),
        ({}, "search.budget has no cap: nothing stops the spending"),
        ({"ledger": "l.sqlite"}, "search.budget has no cap: nothing stops the spending"),
    ],
)
def test_caps(budget: dict[str, Any], says: str | None) -> None:
    got = notes({**LIVE, "budget": budget})
    assert (len(got), says is None or says in got[0]) == (says is not None, True)


def test_without_prices_nothing_is_spent_that_could_be_stopped() -> None:
    free = {**LIVE["text"], "usd_per_1000": 0}
    assert notes({**LIVE, "text": free, "image": {"backend": "none"}, "budget": {}}) == []


def test_calls_that_would_wait_past_their_deadline() -> None:
    """One page a second at a time: a worker's 128 searches x 5 pages all at once would wait 640 x 2 s in line."""
    got = notes(changed(read={"concurrency": 1}))
    (note,) = [n for n in got if "deadline" in n]
    assert note.startswith("search.read: calls may wait 1280 s in its line, over search.deadline_s=28")
    assert "search.read.concurrency" in note and "rollout.tool_concurrency=128" in note
    assert notes(changed(read={"concurrency": 1}), rollout={"tool_concurrency": 2}) == []  # 2 x 5 x 2 s
    # Two workers, twice as many at once.
    twice = notes(changed(read={"concurrency": 1}), train={"ranks": 2, "steps": 50})
    assert "may wait 2560 s" in twice[0]


def test_a_backend_that_there_is_not() -> None:
    with pytest.raises(UsageError, match=r"search\.text\.backend=bing: no such text_backend; there are .*serper"):
        estimate(run({"text": {"backend": "bing"}}))


@given(
    st.integers(1, 600),
    st.integers(2, 16),
    st.floats(0, 3),
    st.floats(0, 3),
    st.floats(0, 1),
    st.integers(1, 9),
)
def test_it_is_proportional_and_never_negative(
    prompts: int, group: int, text: float, image: float, cached: float, steps: int
) -> None:
    assumed = {"text_per_trajectory": text, "image_per_trajectory": image, "text_cached": cached}
    data = {"prompts_per_step": prompts, "group_size": group}
    one = estimate(run(changed(estimate=assumed), data=data, train={"steps": 1}), TODAY)
    many = estimate(run(changed(estimate=assumed), data=data, train={"steps": steps}), TODAY)
    assert (many.calls, many.usd, many.hours) == pytest.approx((steps * one.calls, steps * one.usd, steps * one.hours))
    assert all(s.calls >= 0 and (s.usd or 0) >= 0 and s.busy_s >= 0 for s in one.stages)
    assert next(s.calls for s in one.stages if s.kind == "image") <= prompts
