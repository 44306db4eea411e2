"""Crop in the agent loop: which pixels, which picture, and boxes that are none."""

from __future__ import annotations

import io

import pytest
import tiny_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rollout_fixtures import ScriptedEngine, ScriptedSearch, context, prompt

from megatron_mmsr1 import protocol, tools
from megatron_mmsr1.data.images import ImageError
from megatron_mmsr1.rollout.agent import Seeds, open_group, run_trajectory
from megatron_mmsr1.tools.crop import NO_BOX, cut
from megatron_mmsr1.trajectory import Status, ToolStatus

TOKENIZER = tiny_checkpoint.tokenizer()
ANSWER = "<reason>r</reason><answer>x</answer><|im_end|>"
IMAGE = "<reason>r</reason><search><img></search><|im_end|>"


def crop(box: str) -> str:
    return f"<reason>r</reason><crop>{box}</crop><|im_end|>"


def squares() -> bytes:
    """400x200: the left half black, the right half white, a red pixel in the top left corner of the right half."""
    image = Image.new("RGB", (400, 200))
    image.paste((255, 255, 255), (200, 0, 400, 200))
    image.putpixel((200, 0), (255, 0, 0))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


async def play(*said: str, asked=None, search=None, **crop_settings):
    engine = ScriptedEngine(TOKENIZER, said)
    ctx = context(
        search or ScriptedSearch(), tokenizer=TOKENIZER, tools={"crop": tools.settings_for("crop", crop_settings)}, max_rounds=6
    )
    opening = await open_group(ctx, asked or prompt())
    t = await run_trajectory(ctx, engine, opening, seeds=Seeds(0, 0, 0, 0))
    t.check(ctx.pad_id)
    return t, engine, ctx


async def test_a_crop_is_cut_from_the_original_and_enlarged():
    """The model saw at most 28x28x64 pixels of 400x200; the crop of 50x50 original pixels comes at model.min_pixels."""
    asked = prompt()
    asked.images[:] = [squares()]
    t, engine, _ = await play(crop("500,0,625,250"), ANSWER, asked=asked)
    assert t.status is Status.ANSWERED and [c.kind for c in t.tool_calls] == ["crop"]
    shown = Image.open(io.BytesIO(engine.sent[1][1][1]))
    assert shown.size == (56, 56)
    corner = shown.getpixel((0, 0))
    assert isinstance(corner, tuple) and corner[0] == 255 and corner[1] < 120  # the red pixel, and nothing of the black half
    assert shown.getpixel((55, 55)) == (255, 255, 255)
    pad = "<|vision_start|><|image_pad|><|vision_end|>"
    assert TOKENIZER.decode(engine.sent[1][0]).endswith(
        f"<|im_start|>user\nCropped picture: <information>{pad}</information>\nOriginal user's question: what is 0?\n"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_the_settings_choose_the_size():
    _, engine, _ = await play(crop("0,0,500,500"), ANSWER, min_pixels=112 * 112)
    assert Image.open(io.BytesIO(engine.sent[1][1][1])).size == (112, 112)
    # Bounds that the model does not have are the model's: 28x28x64 pixels.
    _, engine, _ = await play(crop("0,0,500,500"), ANSWER, min_pixels=10**9)
    assert Image.open(io.BytesIO(engine.sent[1][1][1])).size == (224, 224)


async def test_pictures_are_counted_over_the_whole_conversation():
    """The question's, two of a search, then a crop: the fourth is the crop, and can be cropped again."""
    t, engine, _ = await play(IMAGE, crop("3:0,0,1000,1000"), crop("4:0,0,500,500"), ANSWER, limit=2)
    assert t.status is Status.ANSWERED and len(t.images) == 5
    before, after = (Image.open(io.BytesIO(png)).tobytes() for png in (engine.sent[1][1][2], engine.sent[2][1][3]))
    assert before == after  # a crop of everything is the picture itself
    assert [c.query for c in t.tool_calls] == ["", "3:0,0,1000,1000", "4:0,0,500,500"]


OUTSIDE = ["0,0,0,10", "10,0,5,10", "0,0,1001,10", "-1,0,10,10"]
NO_PICTURE = ["2:0,0,10,10", "0:0,0,9,9"]
UNREADABLE = ["", "1,2,3", "a,b,c,d", "9" * 400]


@pytest.mark.parametrize("box", [*OUTSIDE, *NO_PICTURE, *UNREADABLE, "0,0,1,1000"])
async def test_a_box_that_is_none_is_the_models_mistake(box: str):
    """Also a sliver thinner than the vision tower's aspect of 200: 0,0,1,1000 of 10x1900."""
    asked = prompt()
    if box == "0,0,1,1000":
        asked.images[:] = [tall()]
    t, _, _ = await play(crop(box), ANSWER, asked=asked)
    assert t.status is Status.ANSWERED and t.tool_calls[0].status is ToolStatus.REFUSED
    assert not t.infrastructure_failure
    assert t.turns[2].text == f"<|im_start|>user\n{NO_BOX}<|im_end|>\n<|im_start|>assistant\n"


def tall() -> bytes:
    """10x1900: a column of one thousandth of its width is 1x1900 pixels, thinner than 1:200."""
    out = io.BytesIO()
    Image.new("RGB", (10, 1900)).save(out, "PNG")
    return out.getvalue()


async def test_more_crops_than_the_limit_end_the_trajectory():
    t, _, _ = await play(crop("0,0,9,9"), crop("0,0,9,9"), limit=1)
    assert t.status is Status.OUT_OF_ROUNDS and t.called == ["crop", "crop"] and len(t.tool_calls) == 1


async def test_pixels_are_those_that_the_model_sees():
    """400x200 is seen as 308x140 (11x5 blocks of 28, at most 64): the right half begins at 154."""
    asked = prompt()
    asked.images[:] = [squares()]
    _, engine, _ = await play(crop("154,0,308,140"), ANSWER, asked=asked, unit="pixels")
    width, height = Image.open(io.BytesIO(engine.sent[0][1][0])).size
    assert (width, height) == (308, 140)
    seen = Image.open(io.BytesIO(engine.sent[1][1][1])).convert("L")
    assert min(seen.crop((0, 30, seen.width, seen.height)).tobytes()) == 255


# ------------------------------------------------------------------------------------------------------------ cut alone
sides = st.integers(1, 60)


@given(sides, sides, st.tuples(*[st.integers(-3, 1004)] * 4))
def test_every_box_is_cut_or_refused(width: int, height: int, box: tuple[int, int, int, int]):
    """Inside: at least one pixel, no more than the picture, and every pixel that the box touches. Outside: ImageError."""
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, "PNG")
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000):
        with pytest.raises(ImageError, match="does not lie inside"):
            cut(out.getvalue(), list(box), (1000, 1000))
        return
    w, h = Image.open(io.BytesIO(cut(out.getvalue(), list(box), (1000, 1000)))).size
    assert 1 <= w <= width and 1 <= h <= height
    assert w * 1000 >= (x2 - x1) * width and h * 1000 >= (y2 - y1) * height
    assert (w - 2) * 1000 < (x2 - x1) * width and (h - 2) * 1000 < (y2 - y1) * height


def test_a_call_reads_back_as_it_was_written():
    p = protocol.get("mmsearch")
    for box in ("1,2,3,4", "2:1,2,3,4"):
        action = p.parse(f"<crop> {box} </crop>\n")
        assert isinstance(action, protocol.Call) and p.write_call(action) == f"<crop>{box}</crop>"
        assert protocol.parse_action(p.write_call(action)) == action
