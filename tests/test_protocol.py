"""Actions, prompts and observations: one reading of what the model writes, and data that stays data."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoint import tokenizer as tiny_tokenizer

from megatron_mmsr1 import protocol
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.protocol import (
    GIVE_UP,
    IM_END,
    IMAGE,
    IMAGE_SEARCH,
    VISION_TOKENS,
    Answer,
    GiveUp,
    ImageHit,
    ImageSearch,
    Invalid,
    Prompts,
    Segment,
    TextHit,
    TextSearch,
    banned_ids,
    clean,
    encode,
    parse_action,
    strip_end,
)

TOKENIZER = tiny_tokenizer()
CONTROL = ["<|endoftext|>", "<|im_start|>", IM_END, *VISION_TOKENS]
OWN = ["reason", "search", "img", "text_search", "answer", "information", "image"]
OWN_TAGS = [f"<{slash}{t}>" for t in OWN for slash in ("", "/")]
WORDS = ["<answer>", "</answer>", "<text_search>", "</text_search>", IMAGE_SEARCH, GIVE_UP, IM_END, "x", " ", "\n", "<reason>"]
turns = st.lists(st.sampled_from(WORDS), max_size=10).map("".join) | st.text(max_size=40)
# Pieces that could make a token of ours once something between them is taken out.
shards = st.lists(
    st.sampled_from([*"<|>/", "im_end", "search", "img", "\u200b", "\u00ad", "\u202e", "\ue000", *CONTROL, *OWN_TAGS])
    | st.characters(),
    max_size=14,
).map("".join)


# ------------------------------------------------------------------------------------------------------- actions
@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("<reason>r</reason><answer>Lisbon</answer>", Answer("Lisbon")),
        ("<answer>\n two\nlines \n</answer> so there", Answer("two\nlines")),
        ("<answer>a</answer><answer>b</answer>", Answer("b")),
        ("<answer>a <answer>b</answer>", Answer("b")),
        ("<answer>a</answer> b</answer>", Answer("a")),
        ("<answer></answer>", Answer("")),
        (f"<reason>r</reason>{IMAGE_SEARCH}", ImageSearch()),
        (f"{IMAGE_SEARCH} \n{IM_END}<|endoftext|>\n", ImageSearch()),
        ("<text_search>who built it</text_search>", TextSearch("who built it")),
        ("<text_search> a\nquery \n</text_search>\n", TextSearch("a\nquery")),
        ("<text_search>a<text_search>b</text_search>", TextSearch("b")),
        # A search counts only at the end, and there before any answer.
        (f"<answer>x</answer>{IMAGE_SEARCH}", ImageSearch()),
        ("<answer>x</answer><text_search>q</text_search>", TextSearch("q")),
        (f"{IMAGE_SEARCH}<answer>x</answer>", Answer("x")),
        ("<text_search>q</text_search><answer>x</answer>", Answer("x")),
        (f"{IMAGE_SEARCH} I wonder", Invalid("the turn ends without a search, an answer or the give-up sentence")),
        ("<text_search> \n</text_search>", Invalid("the text search has an empty query")),
        (f"<reason>r</reason>{GIVE_UP}.", GiveUp()),
        (f"{GIVE_UP} <answer>x</answer>", Answer("x")),
        ("<search> <img> </search>", Invalid("the turn ends without a search, an answer or the give-up sentence")),
        ("<ANSWER>x</ANSWER>", Invalid("the turn ends without a search, an answer or the give-up sentence")),
        ("", Invalid("the turn ends without a search, an answer or the give-up sentence")),
    ],
)
def test_actions(text: str, action: protocol.Action) -> None:
    assert parse_action(text) == action


@given(turns)
def test_every_text_has_one_action_in_the_documented_order(text: str) -> None:
    action = parse_action(text)
    body = strip_end(text)
    query = re.search(r"<text_search>((?:(?!</?text_search>).)*)</text_search>\Z", body, re.DOTALL)
    answer = re.findall(r"<answer>((?:(?!</?answer>).)*)</answer>", body, re.DOTALL)
    if body.endswith(IMAGE_SEARCH):
        assert action == ImageSearch()
    elif query and query[1].strip():
        assert action == TextSearch(query[1].strip())
    elif query:
        assert isinstance(action, Invalid)
    elif answer:
        assert action == Answer(answer[-1].strip())
    elif GIVE_UP in body:
        assert action == GiveUp()
    else:
        assert isinstance(action, Invalid)


@given(turns, st.text(" \n\t", max_size=3), st.integers(0, 2))
def test_what_follows_the_end_of_a_turn_changes_nothing(text: str, space: str, ends: int) -> None:
    assert parse_action(text + space + IM_END * ends + space) == parse_action(text)


@pytest.mark.parametrize(
    "hostile", ["<answer>" * 12_500, "<text_search>" * 8_000 + "</text_search>", IM_END * 10_000, " " * 100_000]
)
def test_hostile_turns_of_100k_characters_are_parsed(hostile: str) -> None:
    for _ in range(20):
        parse_action(hostile)


# --------------------------------------------------------------------------------------------------------- clean
@given(shards)
def test_cleaned_data_holds_no_token_no_tag_and_nothing_invisible(text: str) -> None:
    s = clean(text)
    assert not re.search(r"<\|[^<>|]*\|>", s)
    assert not any(t in s.lower() for t in [*CONTROL, *OWN_TAGS])
    for c in s:
        # Cf: zero-width and bidi; but for a few visible signs of Arabic, Syriac, Kaithi and Egyptian script.
        assert unicodedata.category(c) not in ("Cc", "Cs") or c in "\t\n"
        assert unicodedata.category(c) != "Cf" or unicodedata.name(c).startswith(("ARABIC", "SYRIAC", "KAITHI", "EGYPTIAN"))
    assert clean(s) == s


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        ("<|im_end|>", "[im_end]"),
        ("<|im_<|x|>end|>", "<|im_[x]end|>"),
        ("<|im\u200b_end|>", "[im_end]"),
        ("<|IM_END|>", "[IM_END]"),
        ("<|reserved_special_token_0|>", "[reserved_special_token_0]"),
        ("</inf<img>ormation>", "</inf[img]ormation>"),
        ("</Information>", "[/Information]"),
        ("<tool_call>", "[tool_call]"),
        ("a\r\nb\tc", "a\nb\tc"),
        ("\ud800x", "x"),
        ("3 < 4 > 2, a|b, <b>bold</b>", "3 < 4 > 2, a|b, <b>bold</b>"),
        ("São Paulo 東京 🇪🇸", "São Paulo 東京 🇪🇸"),
    ],
)
def test_clean(dirty: str, expected: str) -> None:
    assert clean(dirty) == expected


# -------------------------------------------------------------------------------------------------------- encode
SPECIAL = {TOKENIZER.convert_tokens_to_ids(t) for t in CONTROL}
OWN_IDS = {TOKENIZER.convert_tokens_to_ids(t) for t in OWN_TAGS} - {TOKENIZER.unk_token_id, None}


@given(st.lists(shards, max_size=4))
def test_data_never_becomes_a_special_token_or_a_tag(pieces: list[str]) -> None:
    ids = encode(TOKENIZER, [protocol.data(p) for p in pieces])
    assert not (SPECIAL | OWN_IDS) & set(ids)


@given(shards, st.lists(shards, min_size=1, max_size=3), st.integers(0, 2))
def test_a_message_holds_our_special_tokens_and_no_others(question: str, strings: list[str], images: int) -> None:
    hits = [ImageHit(s, b"png" if n % 2 == 0 else None) for n, s in enumerate(strings)]
    prompts = Prompts("Look: <image> ", "then", "then", "be kind")
    messages = [
        protocol.first_message(prompts, question, images),
        protocol.tool_message(protocol.image_observation(hits), question, prompts.after_image),
        protocol.tool_message(protocol.text_observation([TextHit(s, s) for s in strings]), question, prompts.after_text),
    ]
    pictures = [images, sum(h.image is not None for h in hits), 0]
    for segments, n in zip(messages, pictures, strict=True):
        harmless = [Segment("data", "x") if s.kind == "data" else s for s in segments]
        special = [i for i in encode(TOKENIZER, segments) if i in SPECIAL | OWN_IDS]
        assert special == [i for i in encode(TOKENIZER, harmless) if i in SPECIAL | OWN_IDS]
        assert special.count(TOKENIZER.convert_tokens_to_ids("<|image_pad|>")) == n


def test_neighbouring_data_cannot_join_to_a_token() -> None:
    ids = encode(TOKENIZER, [protocol.data("<|im_"), protocol.data("end|>")])
    assert not SPECIAL & set(ids)


def render(segments: list[Segment]) -> str:
    return TOKENIZER.decode(encode(TOKENIZER, segments))


def test_wire_format_of_the_messages() -> None:
    prompts = Prompts("Here is the image and the question:\n<image> ", "AFTER IMAGE", "AFTER TEXT", "SYSTEM")
    vision = "<|vision_start|><|image_pad|><|vision_end|>"
    assert render(protocol.first_message(prompts, "<image>\nWho?", 1)) == (
        "<|im_start|>system\nSYSTEM<|im_end|>\n<|im_start|>user\nHere is the image and the question:\n"
        f"{vision} Who?<|im_end|>\n<|im_start|>assistant\n"
    )
    hits = [ImageHit("A tower", b"png"), ImageHit("A bridge", None)]
    assert render(protocol.tool_message(protocol.image_observation(hits), "Who?", prompts.after_image)) == (
        "<|im_start|>user\nSearched results: <information>[Image Search Results]"
        f"1. image: {vision}\ntitle: A tower\n2. image: \ntitle: A bridge\n</information>\n"
        "Original user's question: Who?\nAFTER IMAGE<|im_end|>\n<|im_start|>assistant\n"
    )
    pages = [TextHit("http://x/y", "It is tall.")]
    assert render(protocol.tool_message(protocol.text_observation(pages), "Who?", prompts.after_text)) == (
        "<|im_start|>user\nSearched results: <information>[Text Search Results]1. (http://x/y) It is tall.\n</information>\n"
        "Original user's question: Who?\nAFTER TEXT<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(protocol.failed_message("image")) == (
        "<|im_start|>user\n[Image Search Results] There is an error encountered in performing search. "
        "Please reason with your own capaibilities.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "[Text Search Results] There is" in render(protocol.failed_message("text"))


def test_images_of_a_message_stand_side_by_side() -> None:
    pad = TOKENIZER.convert_tokens_to_ids("<|image_pad|>")
    assert encode(TOKENIZER, [IMAGE, IMAGE]).count(pad) == 2


def test_banned_are_the_vision_tokens_that_the_vocabulary_has() -> None:
    assert banned_ids(TOKENIZER) == sorted(TOKENIZER.convert_tokens_to_ids(t) for t in VISION_TOKENS)


# ------------------------------------------------------------------------------------------------------- prompts
@pytest.mark.parametrize("name", ["atlas", "mmsearch"])
def test_prompts_that_ship_load(name: str) -> None:
    assert Prompts.load(name).first.count("<image>") == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("first: x\nafter_image: a\nafter_text: b", "must hold <image>"),
        ("first: <image>", "missing keys"),
        ("first: <image>\nafter_image: a\nafter_text: b\nextra: c", "unknown keys"),
        ("- a list", "must map"),
        ("first: [1]\nafter_image: a\nafter_text: b", "must map"),
        ("{", "not valid YAML"),
    ],
)
def test_broken_prompts_are_explained(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=says) as e:
        Prompts.load(path)
    assert str(path) in str(e.value)
    with pytest.raises(UsageError, match="no prompts at"):
        Prompts.load(tmp_path / "gone.yaml")
