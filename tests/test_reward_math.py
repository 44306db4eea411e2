"""The reward for maths: what an answer is, when two mean the same, and that hostile text costs nothing."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1 import reward
from megatron_mmsr1.reward._answers import extract, is_well_formed
from megatron_mmsr1.reward._expressions import verdict
from megatron_mmsr1.reward.math import is_right


@pytest.mark.parametrize(
    ("turn", "answer"),
    [
        ("<reason>r</reason><answer>5</answer>", "5"),
        ("<answer>4</answer> no: <answer> 5 </answer>", "5"),
        ("<answer>so it is \\boxed{\\frac{1}{2}}</answer>", "\\frac{1}{2}"),
        ("first \\boxed{1}, then \\boxed{\\sqrt{2}}.", "\\sqrt{2}"),
        ("\\boxed{never closed", None),
        ("it is 5", None),
        ("", None),
    ],
)
def test_what_a_turn_answers(turn: str, answer: str | None) -> None:
    assert extract(turn) == answer


EQUAL = [
    ("5", "5"), ("5.0", "5"), ("0.5", "\\frac{1}{2}"), ("1/2", "\\dfrac12"), ("1 1/2", "3/2"), ("1\\frac{1}{2}", "1.5"),
    ("-1 1/2", "-3/2"), ("1,200", "1200"), ("2\\sqrt{3}", "\\sqrt{12}"), ("3.4641", "2\\sqrt{3}"), ("√2", "\\sqrt2"),
    ("2π", "2\\pi"), ("2 \\cdot 3", "6"), ("2×3", "6"), ("2^{10}", "1024"), ("2^-1", "0.5"), ("\\sqrt[3]{8}", "2"),
    ("90°", "90"), ("90^\\circ", "90 degrees"), ("90^{\\circ}", "90°"), ("5 cm", "5"), ("5\\text{ cm}", "5 cm"), ("12 m", "12"),
    ("25 cm^2", "25 cm²"), ("x = 5", "5"), ("x=5", "x = 5"), ("$5$", "5"), ("\\(5\\)", "5"), ("50%", "50\\%"), ("1:2", "2:4"),
    ("x^2+2x+1", "(x+1)^2"), ("(a+b)(a-b)", "a^2-b^2"), ("y = 2x + 1", "y = 1 + 2x"), ("\\sin^2 x", "\\sin ^2 x"),
    ("2xy", "2yx"), ("\\frac{x}{2}", "x/2"), ("(1, 2)", "(1,2)"), ("2, 1", "1, 2"), ("\\{1, 2\\}", "{2,1}"),
    ("[0, 1)", "[0,1)"),
    ("B", "(B)"), ("b", "B"), ("B. 35", "B"), ("Option C", "C"), ("(D) 12", "D. 12"), ("35", "B. 35"), ("Yes", "yes"),
    ("\\text{Yes}", "yes"), ("AB", "AB"), ("|x|", "|x|"), ("\\tan(45)", "tan(45)"), ("5.", "5"),
    ("10000000000000000000", "10^19"),
]  # fmt: skip
DIFFERENT = [
    ("5", "6"), ("-5", "5"), ("0.51", "1/2"), ("1 2", "2"), ("3 4", "12"), ("1000000", "1000001"), ("5 cm", "5 km"),
    ("5 cm", "5 cm^2"), ("x = 5", "y = 5"), ("x^2", "2x"), ("x", "y"), ("(1,2)", "(2,1)"), ("[0,1)", "[0,1]"), ("1,2", "1,2,3"),
    ("1, 1", "1, 2"), ("A", "B"), ("A cat", "A"), ("B", "35"), ("no", "yes"), ("", "5"), ("5", "the answer"), ("x+", "x"),
    ("1/0", "2"), ("0/0", "0"), ("ABC", "BAC"), ("()", "0"), ("3.46", "2\\sqrt{3}"), ("10000000000000000001", "10^19"),
    ("__import__('os')", "0"), ("0.5", "50%"), ("[1]", "2"), ("10 100", "1000"), ("2 1 1/2", "3.5"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "gold"), EQUAL)
def test_what_means_the_same_is_right(said: str, gold: str) -> None:
    assert is_right(said, [gold])
    assert is_right(said, ["something else", gold])


@pytest.mark.parametrize(("said", "gold"), DIFFERENT)
def test_what_means_something_else_is_wrong(said: str, gold: str) -> None:
    assert not is_right(said, [gold])


@given(st.fractions(max_denominator=999), st.fractions(max_denominator=999))
def test_fractions_are_equal_exactly(a: Fraction, b: Fraction) -> None:
    assert is_right(f"\\frac{{{a.numerator}}}{{{a.denominator}}}", [f"{a.numerator}/{a.denominator}"])
    assert is_right(str(a), [str(b)]) == (a == b)


@given(st.text(alphabet="0123456789.,+-*/^(){}[]|\\ xyABCfracsqrtpi=%$:", max_size=400), st.sampled_from([g for _, g in EQUAL]))
def test_the_parser_reads_any_text_or_says_that_it_cannot(text: str, gold: str) -> None:
    """math-verify is not asked here: in it such a text may take for ever (`test_scoring.py` has one that does)."""
    assert verdict(text, gold, 1e-4) in (True, False, None)
    assert verdict(gold, text, 1e-4) in (True, False, None)
    assert verdict(gold, gold, 1e-4) is not False


BY_MATH_VERIFY = [
    ("[5, \\infty) \\cup (-\\infty, 3]", "(-\\infty,3]\\cup[5,\\infty)", True), ("3<x", "x>3", True), ("x<3", "x>3", False),
    ("3", "\\log_2 8", True), ("\\log_2 8", "3", True), ("\\binom{5}{2}", "10", True), ("5!", "120", True),
    ("\\begin{pmatrix}1\\\\ 2\\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", True),
    ("\\begin{pmatrix}2\\\\1\\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", False), ("-2, 2", "\\pm 2", True),
    ("5!", "121", False), ("-2, 3", "\\pm 2", False),
    ("x \\in [1,2]", "[1,2]", True), ("x+2y=6", "\\frac{1}{2}x+y=3", True), ("x+2y=7", "\\frac{1}{2}x+y=3", False),
    # What math-verify would take for 5: a sum, and the right side of an equation.
    ("2 3", "5", False), ("6=5", "5", False), ("the answer is 5", "5", False), ("4 or 5", "5", False), ("5 and 6", "5", False),
]  # fmt: skip


@pytest.mark.parametrize(("said", "gold", "right"), BY_MATH_VERIFY)
def test_what_has_no_grammar_here_goes_to_math_verify(said: str, gold: str, right: bool) -> None:
    assert verdict(said, gold, 1e-4) is None
    assert is_right(said, [gold]) is right


@pytest.mark.parametrize(
    "text",
    ["9^9^9^9^9", "(" * 300, "(" * 150 + "1" + ")" * 150, "2^" * 149 + "2", "-" * 299, "\\sqrt" * 60, "9" * 300,
     "((9^64)^64)^64", "1" + "0" * 10**6, "\\boxed{" * 10**5, "<answer>" * 10**5, "|" * 300],
    ids=range(12),
)  # fmt: skip
def test_hostile_text_is_wrong_and_cheap(text: str) -> None:
    scored = reward.get("math").score([f"<reason>r</reason><answer>{text}</answer>"], ["7"])
    assert scored["acc"] == 0.0


def test_the_form() -> None:
    assert is_well_formed("<reason>a\nb</reason>\n<answer>5</answer>")
    assert is_well_formed("<think>a\n\nb</think><answer>5</answer>")


@pytest.mark.parametrize(
    "turn",
    [
        "",
        "<answer>5</answer>",
        "<reason>a</reason>5",
        "<reason>a<answer>5</answer>",
        "<reason>a</reason>x<answer>5</answer>",
        "<reason>a</reason><answer>5</answer>.",
        "<reason></reason><reason></reason><answer>5</answer>",
        "<reason>a</reason><answer>4</answer><answer>5</answer>",
    ],
)
def test_another_form(turn: str) -> None:
    assert not is_well_formed(turn)


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ("<reason>r</reason><answer>1/2</answer>", 1.0),
        ("<answer>1/2</answer>", 0.75),  # right, but 1 - 0.25 of it is for being right
        ("\\boxed{0.5}", 0.75),
        ("<reason>r</reason><answer>2</answer>", 0.25),
        ("2", 0.0),
    ],
)
def test_the_reward(turn: str, expected: float) -> None:
    assert reward.get("math", format_penalty=0.25).score([turn], ["0.5"])["reward"] == expected


def test_open_r1_s_golds_are_read_as_they_stand() -> None:
    """Its solution's answer and its original answer are both golds; either will do (data/rows.py)."""
    score = reward.get("math").score
    assert score(["<think>t</think><answer>65°</answer>"], ["65", "C. 65"])["reward"] == 1.0
    assert score(["<think>t</think><answer>C</answer>"], ["65", "C. 65"])["reward"] == 1.0
    assert score(["<think>t</think><answer>B</answer>"], ["65", "C. 65"])["acc"] == 0.0
