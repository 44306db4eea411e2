"""One question three ways, side by side: as the model likes, without search, with a search required."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, cast

import gradio as gr

from demo import options, render
from demo.atlas import Example
from demo.escape import block, esc
from demo.live import Live
from demo.place import QUIET, html, session
from demo.steps import Exchange, Reply, Talk
from serving.settings import ServeConfig

NAMES = {
    "With search": "as the model decides",
    "Without search": "from what it knows",
    "Search required": "its first turn is a search",
}


def draw(cfg: ServeConfig, live: Live, examples: Sequence[Example], talk: gr.State) -> None:
    html("<p class='lede'>The same question three ways at once, at temperature 0.</p>")
    box = gr.MultimodalTextbox(
        elem_id="compare-question",
        label="Question to compare",
        show_label=False,
        placeholder="A question, with or without a picture",
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        max_plain_text_length=100_000,
        submit_btn="Compare",
    )
    with gr.Row(elem_id="compare-controls"):
        again = gr.Button("The chat's last question", size="sm", elem_id="compare-last")
        offered = gr.Button("An example", size="sm", elem_id="compare-example", visible=bool(examples))
        stop = gr.Button("Stop", variant="stop", size="sm", visible=False, elem_id="compare-stop")
    asked = html(elem_id="compare-asked")
    with gr.Row(elem_id="columns"):
        columns = []
        for n, (name, how) in enumerate(NAMES.items()):
            with gr.Column(min_width=260):
                html(f"<h2>{name}</h2><p class='note'>{how}</p>", "column-head")
                columns.append(html(elem_id=f"column-{n}"))
    outputs = [box, stop, asked, *columns]

    async def run(t: Talk, who: str) -> AsyncIterator[tuple[Any, ...]]:
        asks = options.variants(cfg, t)
        replies = [Reply() for _ in asks]
        question = Exchange(t.exchanges[-1].question, t.exchanges[-1].images)
        yield gr.update(value=None), gr.update(visible=True), block(render.asked(question)), *_columns(replies)
        same = gr.skip()
        async with aclosing(cast(Any, live.follow(who, list(asks.values()), replies))) as news:
            async for _ in news:
                yield same, same, same, *_columns(replies)
        yield same, gr.update(visible=False), same, *_columns(replies)

    async def submit(request: gr.Request, value: dict[str, Any]) -> AsyncIterator[tuple[Any, ...]]:
        t = Talk([options.take(value, Talk(), cfg)])
        async with aclosing(cast(Any, run(t, session(request)))) as news:
            async for update in news:
                yield update

    async def last(request: gr.Request, t: Talk) -> AsyncIterator[tuple[Any, ...]]:
        if not t.exchanges:
            raise gr.Error("Nothing was asked in the chat yet.", print_exception=False)
        async with aclosing(cast(Any, run(t, session(request)))) as news:
            async for update in news:
                yield update

    async def example(request: gr.Request) -> AsyncIterator[tuple[Any, ...]]:
        e = examples[0].exchange()
        async with aclosing(cast(Any, run(Talk([e]), session(request)))) as news:
            async for update in news:
                yield update

    box.submit(submit, [box], outputs, trigger_mode="once", **QUIET)
    again.click(last, [talk], outputs, trigger_mode="once", **QUIET)
    offered.click(example, None, outputs, trigger_mode="once", **QUIET)

    def end(request: gr.Request) -> None:
        live.stop(session(request))

    stop.click(end, None, None, **QUIET)


def _columns(replies: Sequence[Reply]) -> list[str]:
    return [block(render.reply(r, f"c{n}") + _spoken(name, r)) for n, (name, r) in enumerate(zip(NAMES, replies, strict=True))]


def _spoken(name: str, r: Reply) -> str:
    return f'<span class="sr">{esc(f"{name}: {render.status(r)}")}</span>'
