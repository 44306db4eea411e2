"""A turn's text told apart as it comes: however it is cut into pieces, the same characters are of the same kind."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
import tiny_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1 import protocol
from serving.split import ANSWER, REASONING, Decoder, Markup, Splitter, words

TAGS = ["<answer>", "</answer>", "<reason>", "</reason>", "<search>", "<img>", "</search>", "<text_search>", "</text_search>"]
TURNS = st.lists(st.one_of(st.sampled_from([*TAGS, "<", "</", "<|im_end|>", "é", "\n"]), st.text(max_size=5)), max_size=12).map(
    "".join
)
TOKENIZER = tiny_checkpoint.tokenizer()


def decode(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def split(pieces: list[str], *, inside: bool = False, query: bool = False) -> list[tuple[str, str]]:
    s = Splitter(inside=inside, query=query)
    told = [part for piece in pieces for part in s.feed(piece)] + list(s.end())
    return [(kind, "".join(text for _, text in run)) for kind, run in groupby(told, key=lambda part: part[0])]


@given(text=TURNS, cuts=st.lists(st.integers(0, 80)), inside=st.booleans(), query=st.booleans())
def test_pieces_do_not_matter(text, cuts, inside, query):
    at = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    pieces = [text[a:b] for a, b in pairwise(at)]
    begun = {"inside": inside, "query": query}
    assert split(pieces, **begun) == split([text], **begun) == split(list(text), **begun)


@given(reason=st.text(st.characters(exclude_characters="<"), min_size=1), answer=st.text(st.characters(exclude_characters="<")))
def test_what_was_written_is_what_is_shown(reason, answer):
    told = split([f"<reason>{reason}</reason><answer>{answer}</answer>"])
    assert told == [(REASONING, reason)] + ([(ANSWER, answer)] if answer else [])


@pytest.mark.parametrize(
    ("turn", "told"),
    [
        ("<reason>a</reason><search><img></search>", [(REASONING, "a")]),
        ("a<text_search>a query</text_search>", [(REASONING, "a")]),
        ("<answer>a < b</answer> c", [(ANSWER, "a < b"), (REASONING, " c")]),
        ("<answer>a", [(ANSWER, "a")]),
        ("<answer>a</reason></text_search>", [(ANSWER, "a")]),
        ("<answer>a<search><img></search>", [(ANSWER, "a")]),  # a call, which ends the turn
        ("<answer>type <search> there</answer>", [(ANSWER, "type <search> there")]),  # words about one
        ("a <b", [(REASONING, "a <b")]),
        ("a <answ", [(REASONING, "a <answ")]),
    ],
)
def test_turns(turn, told):
    assert split([turn]) == told


def test_a_turn_that_others_began():
    assert split(["a</answer>b"], inside=True) == [(ANSWER, "a"), (REASONING, "b")]
    assert split([" a query</text_search>"], query=True) == []


def test_words_are_what_stands_beside_the_reason():
    assert words("<reason>I know</reason> It is red.<|im_end|>") == "It is red."
    assert words("<reason>It is red.</reason>") == "It is red."
    assert words("<reason></reason><answer>") == ""


@given(text=st.text(st.characters(exclude_categories=["Cs"])), sizes=st.lists(st.integers(1, 5)))
def test_characters_come_whole(text, sizes):
    """A byte a token: no character of several bytes is shown in part, and nothing is lost."""
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    decoder, got = Decoder(decode), []
    for size in sizes:
        got.append(decoder.feed(ids[:size]))
        ids = ids[size:]
    got += [decoder.feed([i]) for i in ids]
    assert "".join(got) + decoder.end() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in got)


@given(st.binary(max_size=30))
def test_bytes_that_are_no_text_are_shown_in_the_end(data):
    alphabet = TOKENIZER.convert_ids_to_tokens(list(range(256)))
    ids = [TOKENIZER.convert_tokens_to_ids(alphabet[b]) for b in data]
    decoder = Decoder(decode)
    got = [decoder.feed([i]) for i in ids]
    assert "".join(got) + decoder.end() == decode(ids)


# ----------------------------------------------------------------------------------------------------------- another protocol
HERMES = Markup.of(protocol.get("hermes"))
PIECES = [
    "<think>",
    "</think>",
    "<tool_call>",
    '{"name"}',
    "</tool_call>",
    "<answer>",
    "</answer>",
    "red",
    " ",
    "<",
    "<|im_end|>",
]


def hermes(pieces: list[str]) -> dict[str, str]:
    s = Splitter(HERMES)
    told = [x for p in pieces for x in s.feed(p)] + list(s.end())
    return {kind: "".join(t for k, t in told if k == kind).strip() for kind in (REASONING, ANSWER)}


@pytest.mark.parametrize(
    ("turn", "reasoning", "answer"),
    [
        ("It is red.<|im_end|>", "", "It is red."),
        ("<think>I see red.</think>It is red.", "I see red.", "It is red."),
        ('I must look.\n<tool_call>\n{"name": "crop"}\n</tool_call>', "I must look.", ""),
        ("I see.<answer>red</answer>", "I see.", "red"),
        ("a < b", "", "a < b"),
    ],
)
def test_a_turn_of_hermes_without_a_call_is_the_answer(turn: str, reasoning: str, answer: str) -> None:
    assert hermes([turn]) == {REASONING: reasoning, ANSWER: answer}


@given(st.lists(st.sampled_from(PIECES), max_size=10))
def test_hermes_cut_anyhow_says_the_same(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert hermes(pieces) == hermes([text]) == hermes(list(text))
