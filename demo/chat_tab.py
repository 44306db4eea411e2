"""The chat: a picture, a question, and the model's reasoning and searches as they happen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import gradio as gr

from demo import options, render
from demo.atlas import Example
from demo.escape import block, esc
from demo.live import Live
from demo.place import QUIET, html, session
from demo.steps import Exchange, Talk
from serving.settings import ServeConfig


def draw(cfg: ServeConfig, live: Live, examples: Sequence[Example]) -> gr.State:
    """The tab's content; what it returns holds the conversation."""
    talk = gr.State(Talk())
    past = html(elem_id="past")
    now = html(elem_id="now")
    with gr.Column(elem_id="welcome", visible=True) as welcome:
        html(_greeting(cfg, bool(examples)), "greeting")
        with gr.Row(elem_id="examples"), TemporaryDirectory() as icons:  # Gradio keeps copies of its own
            buttons = [_example(Path(icons, f"{n}.png"), e) for n, e in enumerate(examples)]
    status = html(elem_id="status")
    with gr.Row(elem_id="compose"):
        box = gr.MultimodalTextbox(
            elem_id="question",
            label="Your question",
            show_label=False,
            placeholder="Ask about a picture: paste, drop or upload one",
            file_types=["image"],
            file_count="multiple",
            sources=["upload"],
            max_plain_text_length=100_000,
            submit_btn="Ask",
            autofocus=False,
        )
    with gr.Row(elem_id="controls"):
        stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop", size="sm")
        new = gr.Button("New conversation", variant="secondary", visible=False, elem_id="new", size="sm")
    controls = options.Options.draw(cfg)
    outputs = [past, now, status, box, welcome, stop, new]

    async def run(t: Talk, e: Exchange, values: Sequence[Any], session: str) -> AsyncIterator[tuple[Any, ...]]:
        t.exchanges.append(e)
        ask = options.ask(cfg, t, *values)
        name = f"q{len(t.exchanges)}"
        before = block(render.talk(t, upto=-1))
        cleared = gr.update(value=None, submit_btn=False)
        hidden, shown = gr.update(visible=False), gr.update(visible=True)
        yield before, _now(e, name), _status(e), cleared, hidden, shown, hidden
        same = gr.skip()
        async with aclosing(cast(Any, live.follow(session, [ask], [e.reply]))) as news:
            async for _ in news:
                yield same, _now(e, name), _status(e), same, same, same, same
        ready = gr.update(submit_btn="Ask")
        yield block(render.talk(t)), block(""), _status(e), ready, same, hidden, shown

    async def submit(request: gr.Request, value: dict[str, Any], t: Talk, *rest: Any) -> AsyncIterator[tuple[Any, ...]]:
        e = options.take(value, t, cfg)
        async with aclosing(cast(Any, run(t, e, rest, session(request)))) as news:
            async for update in news:
                yield update

    def example(which: Example) -> Any:
        async def start(request: gr.Request, t: Talk, *rest: Any) -> AsyncIterator[tuple[Any, ...]]:
            async with aclosing(cast(Any, run(t, which.exchange(), rest, session(request)))) as news:
                async for update in news:
                    yield update

        return start

    box.submit(submit, [box, talk, *controls.components], outputs, trigger_mode="once", **QUIET)
    for button, which in zip(buttons, examples, strict=True):
        button.click(example(which), [talk, *controls.components], outputs, trigger_mode="once", **QUIET)

    def end(request: gr.Request) -> None:
        live.stop(session(request))

    stop.click(end, None, None, **QUIET)

    def reset() -> tuple[Any, ...]:
        empty = block("")
        return Talk(), empty, empty, empty, gr.update(visible=True), gr.update(visible=False)

    new.click(reset, None, [talk, past, now, status, welcome, new], **QUIET)
    return talk


def _example(path: Path, e: Example) -> gr.Button:
    """`path`: where its picture may be until Gradio has its own copy."""
    if e.picture is None:
        return gr.Button(e.question, elem_classes="example")
    path.write_bytes(e.picture)
    button: Any = gr.Button(e.question, icon=str(path), elem_classes="example")
    button.keep_in_cache.add(button.icon["path"])  # else it would go with the uploads that nobody asked about
    return button


def _now(e: Exchange, name: str) -> str:
    return block(render.exchange(e, name))


def _status(e: Exchange) -> str:
    return block(esc(render.status(e.reply)), "sr")


def _greeting(cfg: ServeConfig, examples: bool) -> str:
    tools = "by picture and by text" if cfg.protocol.image_searches else "by text"
    more = "Try one of these, or bring your own picture." if examples else "Bring a picture, or just ask."
    return f"<h2>Ask about a picture</h2><p>The model decides whether to search {tools}, and shows what it found. {more}</p>"
