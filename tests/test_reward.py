"""The MMSearch-R1 reward: golden rows, worked numbers, and what it does with endless or hostile turns."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1 import reward
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.reward import mmsearch
from megatron_mmsr1.reward.mmsearch import answer_of, is_well_formed, normalize, parts, score, searches
from megatron_mmsr1.trajectory import Status, Trajectory

HERE = Path(__file__).parent
ORIGINAL = HERE / "golden" / "original.jsonl.gz"  # 1,600 rows that the original scorer scored
REASON = "<reason>r</reason>"
IMAGE, TEXT = f"{REASON}<search><img></search>", f"{REASON}<text_search>q</text_search>"
tags = [
    "<reason>",
    "</reason>",
    "<answer>",
    "</answer>",
    "<search><img></search>",
    "<text_search>",
    "</text_search>",
    "x",
    "\n",
]
turn = st.lists(st.sampled_from(tags), max_size=12).map("".join)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("row", rows(HERE / "golden" / "reward.jsonl"), ids=lambda r: r["why"])
def test_rows_labelled_by_hand(row: dict) -> None:
    # Each row names its case; right or wrong, number of searches and form were judged by a person, the rest is
    # (1 - format_penalty) * right * (1 - search_penalty) ** (searches, or 1) + format_penalty * formed.
    row = dict(row)
    row.pop("why")
    assert row.pop("score") == pytest.approx(score(**row), abs=1e-9)


def test_identical_to_the_original_on_every_row() -> None:
    golden = [json.loads(line) for line in gzip.decompress(ORIGINAL.read_bytes()).splitlines()]
    assert len(golden) == 1600
    assert [row.pop("score") for row in golden] == [score(**row) for row in golden]


@pytest.mark.parametrize("stray", ["<answer>", "</answer>"])
@pytest.mark.parametrize("action", ["<search><img></search>", "<text_search>q</text_search>"])
def test_a_stray_tag_of_another_action_makes_a_turn_malformed(action: str, stray: str) -> None:
    """As in the original (format_reward): a search turn holds neither tag of an answer, an answer neither tag of a search."""
    end = f"{REASON}<answer>Lisbon</answer>"
    assert is_well_formed([f"{REASON}{action}", end])
    assert not is_well_formed([f"{REASON}{stray}{action}", end])
    assert not is_well_formed([f"{REASON}<text_search><answer>Lisbon</answer>"])
    assert score([f"{REASON}{stray}{action}", end], ["Lisbon"]) == pytest.approx(0.81)  # 0.9 * 0.9, and nothing for the form


def test_the_papers_numbers() -> None:
    right, wrong = f"{REASON}<answer>Lisbon</answer>", f"{REASON}<answer>Porto</answer>"
    assert score([right], ["Lisbon"]) == pytest.approx(1.0)
    assert score([IMAGE, right], ["Lisbon"]) == pytest.approx(0.91)  # 0.9 * 0.9 + 0.1
    assert score([IMAGE, TEXT, right], ["Lisbon"]) == pytest.approx(0.91)
    assert score([IMAGE, TEXT, right], ["Lisbon"], count_penalty=True) == pytest.approx(0.829)  # 0.9 * 0.81 + 0.1
    assert score([wrong], ["Lisbon"]) == pytest.approx(0.1)
    assert score([], ["Lisbon"]) == 0


def test_a_crop_has_its_own_price_and_is_well_formed_before_any_action() -> None:
    """0.9 x 0.9 + 0.1 = 0.91 for one crop; with a search too 0.9 x 0.9 x 0.9 + 0.1 = 0.829. Without a price a crop is free."""
    crop, answer = f"{REASON}<crop>0,0,500,500</crop>", f"{REASON}<answer>Lisbon</answer>"
    assert score([crop, answer], "Lisbon", crop_penalty=0.1) == pytest.approx(0.91)
    assert score([crop, IMAGE, answer], "Lisbon", crop_penalty=0.1) == pytest.approx(0.829)
    assert score([crop, crop, answer], "Lisbon", crop_penalty=0.1) == pytest.approx(0.91)
    assert score([crop, crop, answer], "Lisbon", crop_penalty=0.1, count_penalty=True) == pytest.approx(0.829)
    assert score([crop, answer], "Lisbon") == 1.0
    assert parts([crop, answer], ["Lisbon"], search_penalty=0.1, format_penalty=0.1, reward_mode="EM", count_penalty=False) == {
        "reward": 1.0,
        "acc": 1.0,
        "format": 1.0,
        "searches": 0.0,
        "crops": 1.0,
    }
    assert not is_well_formed([crop]) and not is_well_formed([crop + "x", answer])


def test_a_string_is_the_only_gold() -> None:
    turns = ["<answer>Lisbon</answer>"]
    assert score(turns, "Lisbon") == score(turns, ["Lisbon"]) == pytest.approx(0.9)
    assert score(["<answer>L</answer>"], "Lisbon") == 0


@given(st.lists(turn, max_size=6), st.lists(st.text(max_size=5), max_size=3), st.sampled_from(["EM", "SubEM"]), st.booleans())
def test_any_turns_score_between_0_and_1(turns: list[str], golds: list[str], mode: str, count: bool) -> None:
    value = score(turns, golds, reward_mode=mode, count_penalty=count)
    assert 0 <= value <= 1
    assert value <= score(turns, golds, reward_mode=mode, count_penalty=count, search_penalty=0)


@given(st.lists(turn, max_size=4), st.sampled_from(["EM", "SubEM"]))
def test_nothing_is_right_without_an_answer_element(turns: list[str], mode: str) -> None:
    if turns and answer_of(turns[-1]) is not None:
        turns = [*turns, "no answer"]
    p = parts(turns, ["x", "A", ""], search_penalty=0.1, format_penalty=0.1, reward_mode=mode, count_penalty=False)
    assert p["acc"] == 0


@given(turn)
def test_answer_of_agrees_with_a_plain_regex(text: str) -> None:
    import re

    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    assert answer_of(text) == (found[-1].rsplit("<answer>", 1)[-1] if found else None)


@pytest.mark.parametrize(
    "hostile",
    [
        "<answer>" * 12_500,
        "<reason>" * 12_500 + "</reason>",
        "<text_search>" * 8_000,
        "<reason></reason>" * 6_000 + "<answer>x</answer>",
        "</answer>" * 11_000 + "<answer>",
        "<reason>" + " " * 100_000 + "</reason><answer>x</answer>",
        "a the an " * 12_000 + "<answer>x</answer>",
        "<answer>" + "a an the " * 12_000 + "</answer>",
    ],
)
def test_hostile_turns_of_100k_characters_are_scored(hostile: str) -> None:
    # A backtracking pattern would hang here for minutes to hours; no clock is read.
    for turns in ([hostile], [hostile] * 3):
        score(turns * 10, ["x"], reward_mode="SubEM")
        is_well_formed(turns)
        searches(turns)


def test_normalisation() -> None:
    assert normalize("  The  Eiffel-Tower, (A\tmonument)! ") == "eiffeltower monument"
    assert normalize("theatre an a") == "theatre"


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="EM or SubEM"):
        score(["<answer>x</answer>"], ["x"], reward_mode="exact")


def trajectory(*turns: str, status: Status = Status.ANSWERED) -> Trajectory:
    t = Trajectory("p", "g", 0, "Which city?", ["Lisbon"], status=status)
    t.append("prompt", [1], "question")
    for text in turns:
        t.append("assistant", [1, 2], text, logprobs=[-0.1, -0.2])
        t.append("tool", [3], "result")
    return t


def test_trajectory_is_scored_by_its_assistant_turns() -> None:
    t = trajectory(f"{IMAGE}<|im_end|>", f"{REASON}<answer>Lisbon</answer><|im_end|>")
    reward.score_trajectory(t, mmsearch.Settings())
    assert t.reward == pytest.approx(0.91)
    assert t.reward_parts == {"acc": 1.0, "format": 1.0, "searches": 1.0}
    reward.score_trajectory(t, mmsearch.Settings(search_penalty=0.5, format_penalty=0.0))
    assert t.reward == pytest.approx(0.5)


@pytest.mark.parametrize("status", [Status.ENGINE_ERROR, Status.TOOL_ERROR, Status.ABORTED])
def test_what_broke_under_the_model_has_no_reward(status: Status) -> None:
    t = trajectory(f"{REASON}<answer>Lisbon</answer>", status=status)
    t.reward, t.reward_parts = 1.0, {"acc": 1.0}
    reward.score_trajectory(t, mmsearch.Settings())
    assert t.reward is None
    assert t.reward_parts == {}


@pytest.mark.parametrize("status", [Status.GAVE_UP, Status.INVALID, Status.OUT_OF_ROUNDS, Status.OUT_OF_TOKENS])
def test_what_the_model_did_not_finish_earns_nothing(status: Status) -> None:
    t = trajectory("Unable to answer due to lack of relevant information", status=status)
    reward.score_trajectory(t, mmsearch.Settings())
    assert t.reward == 0


def test_a_reward_is_found_by_its_file() -> None:
    assert type(reward.get("mmsearch")) is mmsearch.MMSearch
    with pytest.raises(UsageError, match="did you mean mmsearch"):
        reward.get("mmsaerch")
