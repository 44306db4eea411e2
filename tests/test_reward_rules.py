"""Multiple choice, the second seed's names, repetition and language: worked examples and properties."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1 import reward
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.reward import openr1mm_accuracy_format
from megatron_mmsr1.reward.language import foreign
from megatron_mmsr1.reward.multiple_choice import is_right, options
from megatron_mmsr1.reward.repetition import repeated
from megatron_mmsr1.trajectory import Status, Trajectory

LISTS = [
    "How many?\nA. 12\nB. 35\nC. none of them\n",
    "How many? (A) 12 (B) 35 (C) None of them",
    "Fig. A. shows a plan.\nHow many?\nChoices: A) 12 B) 35 C) none of them\nAnswer with the letter.",
]


@pytest.mark.parametrize("question", LISTS)
def test_the_options_of_a_question(question: str) -> None:
    assert options(question) == {"A": "12", "B": "35", "C": "none of them"}


@pytest.mark.parametrize(
    "question", ["", "How many?", "Is (A) the city?", "B. 1\nC. 2", "A. 1\nC. 3", "The U.S. A. and B.cats"]
)
def test_a_question_without_a_list_has_no_options(question: str) -> None:
    assert options(question) == {}


CHOICES = [
    ("B", "B", True), ("(b)", "B", True), ("B. 35", "B", True), ("35", "B", True), ("35.", "B", True),
    ("Option B", "(B)", True),
    ("B", "B. 35", True), ("B", "35", True), ("35", "35", True), ("None of them", "C", True), ("C: none of them", "C", True),
    ("A", "B", False), ("12", "B", False), ("B. 12", "B", False), ("A. 35", "B", False), ("A", "35", False), ("", "B", False),
    ("B or C", "B", False), ("A, B", "B", False), ("-35", "B", False), ("3 5", "B", False),
]  # fmt: skip


@pytest.mark.parametrize(("said", "gold", "right"), CHOICES)
def test_a_choice_by_letter_by_text_or_by_both(said: str, gold: str, right: bool) -> None:
    assert is_right(said, [gold], options(LISTS[0])) is right
    assert is_right(said, ["", "something else", gold], options(LISTS[0])) is right


def test_without_a_list_the_gold_alone_counts() -> None:
    assert is_right("35", ["B. 35"], {}) and is_right("B", ["B. 35"], {}) and is_right("B. 35", ["B. 35"], {})
    assert not is_right("B. 34", ["B. 35"], {}) and not is_right("34", ["B. 35"], {})
    assert is_right("B. anything", ["B"], {}) and not is_right("35", ["B"], {})  # what B stands for is not known


@given(st.text(alphabet="ABCab().: \n123-", max_size=60), st.text(alphabet="ABCab().: 123-", max_size=8))
def test_any_question_and_any_answer_have_a_verdict(question: str, answer: str) -> None:
    listed = options(question)
    assert list(listed) == list("ABCDEFGH")[: len(listed)] and len(listed) != 1
    for letter, text in listed.items():
        assert is_right(letter, [letter], listed)
        assert is_right(f"({letter})", [f"{letter}. {text}"], listed)
    assert is_right(answer, ["B"], listed) in (True, False)


def test_multiple_choice_reads_its_trajectory_s_question() -> None:
    t = Trajectory("p", "g", 0, LISTS[1], ["B"], status=Status.ANSWERED)
    t.append("assistant", [1], "<reason>a\nb</reason><answer>35</answer><|im_end|>", logprobs=[0.0])
    assert reward.get("multiple_choice", format_penalty=0.25).parts(t) == {"reward": 1.0, "acc": 1.0, "format": 1.0}


@pytest.mark.parametrize(
    ("turn", "acc", "form"),
    [
        ("<think>so\n\nso</think>\n<answer>B</answer>", 1.0, 1.0),
        ("<think>so</think><answer>(B) 35</answer><|im_end|>", 1.0, 1.0),
        ("<think>so</think><answer>A</answer>", 0.0, 1.0),
        ("<think>so</think> hence <answer>B</answer>", 1.0, 0.0),
        ("so</think><answer>B</answer>", 1.0, 0.0),
        ("\\boxed{B}", 1.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_the_second_seed_s_rewards(turn: str, acc: float, form: float) -> None:
    assert reward.get("openr1mm").score([turn], ["B. 35"]) == {"reward": acc, "acc": acc}
    both = reward.get("openr1mm_accuracy_format").score([turn], ["B. 35"])
    assert both == {"reward": acc + form, "acc": acc, "format": form}


def test_a_prompt_may_open_the_thought() -> None:
    turn = "so</think><answer>B</answer>"
    assert reward.get("openr1mm_accuracy_format", prefilled=True).score([turn], ["B"])["reward"] == 2.0


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "x", " ", "\n"]), max_size=12).map("".join))
def test_the_format_is_the_pattern_s(turn: str) -> None:
    """The pattern backtracks; ours is linear. White space around the turn does not count."""
    pattern = r"<think>.*?</think>\s*<answer>.*?</answer>"
    assert openr1mm_accuracy_format.is_well_formed(turn) == bool(re.fullmatch(pattern, turn.strip(), re.DOTALL))
    open_too = rf"(?:<think>)?{pattern.removeprefix('<think>')}"
    expected = bool(re.fullmatch(open_too, turn.strip(), re.DOTALL))
    assert openr1mm_accuracy_format.is_well_formed(turn, prefilled=True) == expected


def test_repetition_worked() -> None:
    # "a b a b a": bigrams ab ba ab ba; 2 of 4 are distinct.
    assert repeated(["a b a b a"], 2) == 0.5
    assert repeated(["a b", "a b"], 2) == 0.5  # a turn that says the same again
    assert repeated(["a b", "b a"], 2) == 0.0 and repeated(["a"], 2) == 0.0 and repeated([], 2) == 0.0
    assert repeated(["好好好好"], 2) == pytest.approx(2 / 3)  # a character is a word where no spaces are written
    scored = reward.get("repetition", n=2, allowed=0.2).score(["a b a b a"], ["x"])
    assert scored == {"reward": pytest.approx(-0.375), "repeated": 0.5}  # -(0.5 - 0.2) / 0.8
    assert reward.get("repetition", n=2, allowed=0.5).score(["a b a b a"], ["x"])["reward"] == 0


@given(st.lists(st.text(alphabet="ab 好", max_size=40), max_size=3), st.integers(1, 5))
def test_repetition_is_a_share_and_does_not_sink_when_a_turn_is_said_again(turns: list[str], n: int) -> None:
    share = repeated(turns, n)
    assert 0 <= share < 1
    assert repeated(turns * 2, n) >= share


def test_language_worked() -> None:
    latin = frozenset({"latin", "greek"})
    assert foreign(["<reason>Größe über π und ℝ: 5 − 3</reason>"], latin) == 0.0
    assert foreign(["ab好c"], latin) == 0.25
    assert foreign(["<answer>好的</answer>"], frozenset({"cjk"})) == 0.0  # tags are no letters
    assert foreign(["12 + 3"], latin) == 0.0
    assert reward.get("language").score(["ab好c"], ["x"]) == {"reward": -0.25, "foreign": 0.25}
    assert reward.get("language", scripts=["CJK"]).score(["ab好c"], ["x"])["foreign"] == 0.75
    with pytest.raises(UsageError, match="no letter is of the script english"):
        reward.get("language", scripts=["english"])


HOSTILE = [
    "A. " * 33_000,
    "(A) " * 12_000 + "(B) " * 12_000,
    "</think>" * 12_000,
    "<think>" + "</think> " * 11_000,
    "好" * 100_000,
]


@pytest.mark.long
@pytest.mark.parametrize("name", ["multiple_choice", "openr1mm_accuracy_format", "repetition", "language"])
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_of_100_kb_is_scored(name: str, text: str) -> None:
    # What takes more than linear time would hang here; no clock is read.
    for turn in (text, f"<think>t</think><answer>{text}</answer>"):
        values = reward.get(name).score([turn], ["B"])
        assert values.get("acc", 0.0) == 0.0
    options(text)
