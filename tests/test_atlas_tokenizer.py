"""The Atlas tokenizer and model: lossless, one token a tag and a word, loaded by transformers as any checkpoint."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_mmsr1 import protocol
from megatron_mmsr1.atlas import pages, turns
from megatron_mmsr1.atlas.model import ModelShape, mrope_section, new_model, save_model
from megatron_mmsr1.atlas.names import SYLLABLES
from megatron_mmsr1.atlas.picture import draw, png
from megatron_mmsr1.atlas.questions import PHRASINGS
from megatron_mmsr1.atlas.spec import AtlasSpec
from megatron_mmsr1.atlas.tokenizer import CROP, SPECIAL, TAGS, VOCAB_SIZE, build_tokenizer
from megatron_mmsr1.atlas.world import make_world
from megatron_mmsr1.protocol import IMAGE
from megatron_mmsr1.protocol.mmsearch import wrapped
from megatron_mmsr1.tools.crop import NO_BOX, Crop

TOKENIZER = build_tokenizer()
NAME = st.lists(st.sampled_from(SYLLABLES), min_size=2, max_size=3).map("".join)


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def tokens(text: str) -> list[str]:
    found = TOKENIZER.convert_ids_to_tokens(ids(text))
    assert isinstance(found, list)
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("atlas") / "model"
    save_model(out)
    return out


@given(st.text())
@settings(max_examples=examples(300), deadline=None)
def test_any_text_survives_the_round_trip(text: str) -> None:
    assert TOKENIZER.decode(ids(text)) == text


@given(st.lists(st.one_of(st.sampled_from(SPECIAL + TAGS), NAME, st.text(max_size=5), st.integers().map(str))).map("".join))
@settings(max_examples=examples(300), deadline=None)
def test_text_with_tags_and_names_survives_too(text: str) -> None:
    assert TOKENIZER.decode(ids(text)) == text


@given(NAME)
@settings(deadline=None)
def test_a_name_is_the_same_syllables_everywhere(name: str) -> None:
    syllables = [name[i : i + 2] for i in range(0, len(name), 2)]
    assert tokens(name) == syllables
    assert tokens(f" {name}") == ["Ġ", *syllables]
    assert tokens(f"<answer>{name}</answer>") == ["<answer>", *syllables, "</answer>"]
    assert tokens(f"http://atlas.test/{name})") == ["http://atlas.test/", *syllables, ")"]
    assert tokens(f"\ntitle: {name}\n")[1:-1] == syllables


def test_tags_are_one_plain_token_and_control_tokens_one_special_one() -> None:
    for t in TAGS + SPECIAL:
        assert tokens(t) == [t]
    special = set(TOKENIZER.all_special_tokens)
    assert set(SPECIAL) <= special and not set(TAGS) & special
    assert TOKENIZER.decode(ids("<reason> I know</reason><|im_end|>"), skip_special_tokens=True) == "<reason> I know</reason>"


def test_every_id_has_a_token() -> None:
    assert len(TOKENIZER) == VOCAB_SIZE == len(set(TOKENIZER.convert_ids_to_tokens(list(range(VOCAB_SIZE)))))


def test_a_year_is_two_tokens() -> None:
    assert tokens("1743") == ["17", "43"]
    assert tokens("12345") == ["12", "34", "5"]


def test_every_word_of_the_templates_is_one_token() -> None:
    texts = [form.replace("{}", "this place") for forms in PHRASINGS.values() for form in forms]
    texts += [turns.text_search("this place capital"), turns.image_search(), turns.answer("unknown"), *turns.REASON.values()]
    texts += [s for e in make_world(AtlasSpec()).train[:9] for s in pages.sentences(e) if "founded" not in s]
    for text in texts:
        spaced = text if text.startswith("<") else f" {text}"
        single = [t for t in tokens(spaced) if len(t.removeprefix("Ġ")) == 1 and t.removeprefix("Ġ").isalpha()]
        assert set(single) <= {"Ġa", "ĠI"}, (text, tokens(spaced))


def test_the_observation_is_thrifty() -> None:
    """What a text search costs: the tokens of the shape below, counted by hand."""
    hits = [protocol.TextHit(f"http://atlas.test/{n}", f"the capital of {n} is beka .") for n in ("zuri", "mola")]
    message = protocol.tool_message(protocol.text_observation(hits), "who rules zuri ?", "")
    # head: <|im_start|> user Searched… <information> [Text…
    # a hit: `1. (` url zu ri ) the capital of _ zu ri is _ be ka . newline
    # tail: </information> Original… who rules _ zu ri ? newline <|im_end|> newline <|im_start|> assistant
    assert len(protocol.encode(TOKENIZER, message)) == 5 + 2 * 17 + 2 + 6 + 5


def test_a_crop_is_sixteen_tokens_and_its_result_ten_and_the_question() -> None:
    """Digits go in twos from the left; the picture is one pad between its vision tokens."""
    said = turns.crop(1)
    assert said == "<reason> zoom in</reason><crop>850,100,900,150</crop>"
    box = ["85", "0", ",", "10", "0", ",", "90", "0", ",", "15", "0"]
    assert tokens(said) == ["<reason>", " zoom", "Ġin", "</reason>", "<crop>", *box, "</crop>"]
    shown = TOKENIZER.convert_ids_to_tokens(
        protocol.encode(TOKENIZER, wrapped(Crop.heading, [IMAGE], "what shape is the charge ?", ""))
    )
    head = [
        "<|im_start|>",
        "user\n",
        "Cropped picture: ",
        "<information>",
        "<|vision_start|>",
        "<|image_pad|>",
        "<|vision_end|>",
    ]
    asked = ["Ġwhat", "Ġshape", "Ġis", "Ġthe", "Ġcharge", "Ġ?"]
    tail = ["Ċ", "<|im_end|>", "Ċ", "<|im_start|>", "assistant\n"]
    assert shown == [*head, "</information>", "\nOriginal user's question:", *asked, *tail]


def test_a_refused_crop_is_two_fixed_phrases() -> None:
    assert tokens(NO_BOX) == [
        "[Cropped Picture]",
        " The box does not lie inside the picture.",
    ]


def test_tokens_that_came_later_changed_no_id_of_an_earlier_checkpoint() -> None:
    """The first free id after the phrases was 549: 640 less the 91 spare ones of the checkpoints that shipped before crops."""
    assert [TOKENIZER.convert_tokens_to_ids(t) for t in CROP] == list(range(549, 549 + len(CROP)))


def test_the_chat_template_is_the_protocols_first_message() -> None:
    content = [{"type": "image"}, {"type": "text", "text": " who rules zurimo ?"}]
    said: list[dict[str, Any]] = [{"role": "user", "content": content}]
    chat = TOKENIZER.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    message = protocol.first_message(protocol.Prompts.load("atlas"), "who rules zurimo ?", 1)
    assert ids(str(chat)) == protocol.encode(TOKENIZER, message)


def test_vision_tokens_can_be_banned() -> None:
    assert len(protocol.banned_ids(TOKENIZER)) == len(protocol.VISION_TOKENS)


def test_mrope_sections_fill_half_a_head() -> None:
    assert mrope_section(128) == [16, 24, 24]  # Qwen2.5-VL's own
    assert mrope_section(32) == [4, 6, 6]


def test_weights_follow_the_seed_and_leave_the_callers_random_state() -> None:
    import torch

    before = torch.get_rng_state()
    a, b, c = (new_model(ModelShape(), seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["lm_head.weight"], c["lm_head.weight"])
    assert sum(v.numel() for v in a.values()) < 1.5e6


@pytest.mark.long
def test_transformers_load_the_checkpoint_unmodified(checkpoint: Path) -> None:
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    text = "<|im_start|>user\n who rules zurimo 1743 ?<|im_end|>"
    assert tokenizer.encode(text) == ids(text) and len(tokenizer) == VOCAB_SIZE
    processor: Any = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    picture = Image.open(io.BytesIO(png(draw(make_world(AtlasSpec()).train[0].emblem))))
    for image, grid in ((picture, [1, 4, 4]), (Image.new("RGB", (800, 600)), [1, 42, 58])):
        chat = "<|vision_start|><|image_pad|><|vision_end|> who rules this place ?"
        batch = processor(text=[chat], images=[image], return_tensors="pt")
        assert batch["image_grid_thw"].tolist() == [grid]
        assert int((batch["input_ids"] == ids("<|image_pad|>")[0]).sum()) == grid[1] * grid[2] // 4
        with torch.inference_mode():
            logits = model(**batch).logits
        assert logits.shape[-1] == VOCAB_SIZE and bool(torch.isfinite(logits).all())
