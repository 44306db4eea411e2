"""A training run, walked through: how answers, searches and reward changed from step to step."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import gradio as gr

from demo import replay, runs, trace
from demo.escape import block, esc
from demo.place import QUIET, html
from demo.trace_tab import decoder
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.rollout.context import Context
from serving.settings import ServeConfig

ROLLOUTS = 200  # offered of a point
ALL = "Every question of a step"


def draw(cfg: ServeConfig, context: Context, tab: gr.Tab) -> None:
    with gr.Row(elem_id="replay-choice"):
        run = gr.Dropdown([], label="Training run", elem_id="replay-run", interactive=True)
        prompt = gr.Dropdown([(ALL, "")], value="", label="Follow", elem_id="replay-prompt", interactive=True)
    with gr.Row(elem_id="replay-walk"):
        back = gr.Button("Previous", size="sm", elem_id="replay-back")
        at = gr.Slider(0, 1, value=0, step=1, label="Point of the run", elem_id="replay-at", buttons=[])
        forth = gr.Button("Next", size="sm", elem_id="replay-next")
    charts = html(elem_id="replay-charts")
    here = html(elem_id="replay-point")
    with gr.Row():
        which = gr.Dropdown([], label="One rollout, token by token", elem_id="replay-rollout", interactive=True)
        mode = gr.Radio([trace.MASK, trace.CHANCE], value=trace.CHANCE, label="Colour tokens by")
    tokens = html(elem_id="replay-trace")

    async def opened(name: str | None) -> Any:
        """The tab was opened: the runs that are there now."""
        found = await asyncio.to_thread(runs.find, cfg.runs)
        if not found:
            nothing = block(f'<p class="empty">{esc(_nothing(cfg))}</p>')
            return gr.update(choices=[], value=None), nothing
        # A run that is new to the box opens itself, by the box's own change.
        return gr.update(choices=list(found), value=name if name in found else next(iter(found))), gr.skip()

    async def chosen(name: str | None, how: str) -> Any:
        index = await asyncio.to_thread(replay.index_of, cfg.runs, name)
        choices = [(ALL, ""), *runs.follow(index)]
        return gr.update(choices=choices, value=""), *await begin(name, index, "", how)

    async def followed(name: str | None, whose: str | None, how: str) -> Any:
        index = replay.of(await asyncio.to_thread(replay.index_of, cfg.runs, name), whose or "")
        return await begin(name, index, whose or "", how)

    async def begin(name: str | None, index: replay.Index, whose: str, how: str) -> tuple[Any, ...]:
        return gr.update(maximum=max(len(index) - 1, 1), value=0), *await place(name, index, whose, 0, how)

    async def moved(name: str | None, whose: str | None, number: float, how: str) -> Any:
        index = replay.of(await asyncio.to_thread(replay.index_of, cfg.runs, name), whose or "")
        return await place(name, index, whose or "", number, how)

    async def place(name: str | None, index: replay.Index, whose: str, number: float, how: str) -> tuple[Any, ...]:
        """The overview, the point, its rollouts to choose from, and the first of them by tokens."""
        if not index:
            return block(replay.overview(index, 0)), block(""), gr.update(choices=[], value=None), block("")
        n = _within(number, len(index))
        p, rows = index[n]
        listed = [(replay.short(r), r.place) for r in rows[:ROLLOUTS]]
        first = gr.update(choices=listed, value=listed[0][1])
        overview, here = replay.overview(index, n), replay.point(p, rows, prompt=whose)
        return block(overview), block(here), first, await by_tokens(name, p, rows, listed[0][1], how)

    async def shown(name: str | None, whose: str | None, number: float, rollout: int | None, how: str) -> str:
        index = replay.of(await asyncio.to_thread(replay.index_of, cfg.runs, name), whose or "")
        if not index or rollout is None:
            return block("")
        return await by_tokens(name, *index[_within(number, len(index))], rollout, how)

    async def by_tokens(name: str | None, p: runs.Point, rows: tuple[runs.Row, ...], rollout: int, how: str) -> str:
        directory = runs.find(cfg.runs).get(name or "")
        if directory is None or not any(r.place == rollout for r in rows):
            return block("")
        try:
            t = await asyncio.to_thread(runs.trajectory, p, rollout)
        except RunError as e:
            return block(f'<p class="trouble">{esc(str(e))}</p>')
        images = await asyncio.to_thread(runs.pictures, directory, t)
        decode, pad = await asyncio.to_thread(_decoder, directory, context)
        return block(trace.trace(t, decode, pad, images, mode=how, name="r"))

    drawn = [charts, here, which, tokens]
    tab.select(opened, [run], [run, charts], **QUIET)
    run.change(chosen, [run, mode], [prompt, at, *drawn], **QUIET)
    prompt.input(followed, [run, prompt, mode], [at, *drawn], **QUIET)
    at.change(moved, [run, prompt, at, mode], drawn, trigger_mode="always_last", **QUIET)
    gr.on([which.input, mode.change], shown, [run, prompt, at, which, mode], tokens, trigger_mode="always_last", **QUIET)

    def step(by: int) -> Any:
        async def go(name: str | None, whose: str | None, number: float) -> int:
            index = replay.of(await asyncio.to_thread(replay.index_of, cfg.runs, name), whose or "")
            return _within(number + by, max(len(index), 1))

        return go

    back.click(step(-1), [run, prompt, at], at, **QUIET)
    forth.click(step(1), [run, prompt, at], at, **QUIET)


def _within(place: float, n: int) -> int:
    return min(max(0, int(place)), n - 1)


def _nothing(cfg: ServeConfig) -> str:
    if cfg.runs is None:
        return "No runs are named: start the app with runs=DIRECTORY of your training runs."
    return f"No run under {cfg.runs} has rollouts: mmsr1 train writes them."


def _decoder(run: Path, context: Context) -> tuple[trace.Decode, int]:
    """The run's own tokenizer where it kept one, else that of the model that is served."""
    from tokenizers import Tokenizer

    from megatron_mmsr1.protocol import IMAGE_PAD

    file = run / "model" / "tokenizer.json"
    if file.is_file():
        own = Tokenizer.from_file(str(file))
        pad = own.token_to_id(IMAGE_PAD)
        if pad is not None:
            return lambda ids: own.decode(ids, skip_special_tokens=False), pad
    return decoder(context), context.pad_id
