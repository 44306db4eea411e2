"""A trajectory by tokens: every token once, pictures where their pads stand, what was trained on told from what was not."""

from __future__ import annotations

import math

import pytest
import tiny_checkpoint
from demo_fixtures import HOSTILE, Shown, check_harmless, png
from hypothesis import given
from hypothesis import strategies as st

from demo import trace
from megatron_mmsr1.trajectory import ImageRef, ToolCall, ToolStatus, Trajectory

TOKENIZER = tiny_checkpoint.tokenizer()
PAD = TOKENIZER.convert_tokens_to_ids("<|image_pad|>")
REF = ImageRef("0" * 64, (1, 4, 4))


def decode(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=False)


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def conversation(said: str, found: str = "x", logprob: float = -0.1) -> Trajectory:
    t = Trajectory("p", "g", 0, "q", ["a"])
    t.append("prompt", [*encode("look "), *[PAD] * REF.tokens(), *encode(" what?")], "look", images=[REF])
    ids = encode(said)
    t.append("assistant", ids, said, logprobs=[logprob] * len(ids), action="text_search")
    tool = ToolCall("text", found, ToolStatus.TIMEOUT, 1.5, cached=True)
    t.append("tool", encode(found), found, tool=tool)
    return t


@given(st.text(min_size=1), st.text(min_size=1))
def test_every_token_is_in_one_piece(said: str, found: str) -> None:
    t = conversation(said, found)
    refs = iter(t.images)
    parts = [p for turn in t.turns for p in trace.pieces(t, turn, decode, PAD, refs)]
    assert [i for p in parts for i in p.ids] == t.token_ids.tolist()
    assert sum(len(p.ids) for p in parts if p.trained) == sum(t.loss_mask)
    assert math.isclose(sum(p.logprob for p in parts), sum(t.logprobs))
    assert [p.image for p in parts if p.image] == [REF]


@pytest.mark.parametrize("mode", [trace.MASK, trace.CHANCE])
@given(st.text(min_size=1) | st.sampled_from(HOSTILE))
def test_what_tokens_say_stays_words(mode: str, words: str) -> None:
    shown = check_harmless(trace.trace(conversation(words, words), decode, PAD, {REF.sha256: png()}, mode=mode))
    assert "img" in shown.tags


def test_a_picture_that_is_gone_is_told_in_words() -> None:
    assert "picture of 4 tokens" in Shown.of(trace.trace(conversation("a"), decode, PAD, {})).words


def test_shades_are_told_in_numbers_too() -> None:
    shown = Shown.of(trace.trace(conversation("abc", logprob=math.log(0.3)), decode, PAD, {}, mode=trace.CHANCE))
    assert ("span", "class", "tok p3") in shown.attributes and ("span", "title", "p 0.300, log-prob -1.204") in shown.attributes
    assert "0.2 to 0.5" in shown.words and "mean log-prob -1.204" in shown.words and "table" in shown.tags
    assert [trace.shade(p) for p in (1.0, 0.95, 0.9, 0.5, 0.21, 0.0)] == [0, 0, 1, 2, 3, 4]


def test_a_turn_says_who_spoke_and_what_became_of_a_tool() -> None:
    words = Shown.of(trace.trace(conversation("a", "rivers"), decode, PAD, {})).words
    assert "Model: text search" in words and "Tool: text search for “rivers”, timeout, 1.50 s, cached" in words
