"""A question as the page sends it: what is taken, what is refused in words, what never depends on the page's honesty."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from demo_fixtures import png

from demo.atlas import Example, examples, prepare
from demo.steps import Exchange, Talk
from megatron_mmsr1.config import ModelConfig
from serving.settings import GatewaySection, LimitsSection, ServeConfig

LIMITS = LimitsSection(images=2, image_bytes=2000, image_pixels=64 * 64)
CFG = ServeConfig(model=ModelConfig(path="x"), gateway=GatewaySection(limits=LIMITS))


def take(message: dict[str, Any] | None, before: Talk) -> Exchange:
    from demo import options

    return options.take(message, before, CFG)


def refused(why: str) -> Any:
    import gradio as gr

    return pytest.raises(gr.Error, match=why)


def upload(directory: Path, data: bytes, name: str = "a.png") -> str:
    path = directory / name
    path.write_bytes(data)
    return str(path)


@pytest.mark.long
def test_a_question_is_taken_and_its_files_are_gone(tmp_path: Path) -> None:
    e = take({"text": " what ? ", "files": [upload(tmp_path, png())]}, Talk())
    assert (e.question, e.images) == ("what ?", [png()]) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "data", "why"),
    [
        ("", png(), "Write a question to go with it"),
        ("?", b"no picture", "no picture that can be read"),
        ("?", png(size=(65, 64)), "megapixels at most"),
        ("?", b"x" * 2001, "MB at most"),
    ],
)
def test_what_is_refused_stays_for_the_next_try(tmp_path: Path, text: str, data: bytes, why: str) -> None:
    with refused(why):
        take({"text": text, "files": [upload(tmp_path, data)]}, Talk())
    assert len(list(tmp_path.iterdir())) == 1


def test_too_many_pictures_and_ones_that_are_gone(tmp_path: Path) -> None:
    before = Talk([Exchange("one", [png(), png()])])
    with refused("may hold 2 pictures"):
        take({"text": "?", "files": [upload(tmp_path, png())]}, before)
    with refused("upload it again"):
        take({"text": "?", "files": [str(tmp_path / "gone.png")]}, Talk())
    with refused("Write a question first"):
        take(None, Talk())


@pytest.mark.parametrize(
    ("search", "tools", "searches", "wanted", "required"),
    [
        ("FREE", ["Image search", "Text search"], 3, ("image", "text"), False),
        ("FREE", ["Text search", "forged"], -5, ("text",), False),
        ("ALWAYS", ["Image search"], 1, ("image",), True),
        ("ALWAYS", [], 3, (), False),
        ("ALWAYS", ["Image search"], 0, ("image",), False),
        ("OFF", ["Image search", "Text search"], 3, (), False),
    ],
)
def test_the_controls_make_an_ask(
    search: str, tools: list[str], searches: float, wanted: tuple[str, ...], required: bool
) -> None:
    from demo import options

    ask = options.ask(CFG, Talk([Exchange("?", [])]), getattr(options, search), tools, searches, 99.0)
    assert (ask.tools, ask.require_search) == (wanted, required)
    assert ask.max_searches == max(0, searches) and ask.temperature == 2.0 and ask.deadline_s == LIMITS.deadline_s


def test_compared_are_three_ways_that_differ_by_search_alone() -> None:
    from demo import options

    ways = options.variants(CFG, Talk([Exchange("?", [])]))
    assert [(a.tools != (), a.require_search, a.temperature) for a in ways.values()] == [
        (True, False, 0.0),
        (False, False, 0.0),
        (True, True, 0.0),
    ]


@pytest.mark.long
def test_the_offline_default_is_made_once_and_offers_questions(tmp_path: Path) -> None:
    cfg = prepare(tmp_path)
    corpus = Path(str(cfg.search.corpus))
    stamp = (corpus / "world.json").stat().st_mtime_ns
    assert prepare(tmp_path) == cfg and (corpus / "world.json").stat().st_mtime_ns == stamp
    offered = examples(str(corpus))
    assert len(offered) == 7 and len({e.question for e in offered}) == 7  # one a kind of question, and a follow-up's
    assert all(e.exchange().images and Path(cfg.model.path, "config.json").is_file() for e in offered)
    assert examples(None) == examples(str(tmp_path)) == []
    assert Example("?").exchange().images == []


def test_pictures_of_examples_outlive_the_uploads_that_nobody_asked_about() -> None:
    import gradio as gr
    from gradio.route_utils import delete_files_created_by_app

    from demo import chat_tab
    from demo.live import Live

    live: Any = Live(cast(Any, None), 1)
    with gr.Blocks() as blocks:
        chat_tab.draw(CFG, live, [Example("?", png())])
    icon = next(Path(b.icon["path"]) for b in blocks.blocks.values() if isinstance(b, gr.Button) and b.icon)
    delete_files_created_by_app(blocks, None)
    assert icon.read_bytes() == png()
