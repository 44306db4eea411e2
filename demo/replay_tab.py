"""A training run, walked through: how answers, searches and reward changed from step to step."""

from __future__ import annotations

import asyncio
from pathlib import Path

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

    async def opened(name: str | None) -> tuple[object, ...]:
        """The tab was opened: the runs that are there now."""
        found = await asyncio.to_thread(runs.find, cfg.runs)
        if not found:
            none = block(f'<p class="empty">{esc(_nothing(cfg))}</p>')
            return gr.update(choices=[], value=None), none, block(""), block("")
        chosen = name if name in found else next(iter(found))
        return gr.update(choices=list(found), value=chosen), gr.skip(), gr.skip(), gr.skip()

    async def chosen(name: str | None) -> tuple[object, ...]:
        index = await asyncio.to_thread(_index, cfg, name)
        follow = [(ALL, ""), *runs.follow(index)]
        return gr.update(choices=follow, value=""), gr.update(maximum=max(len(index) - 1, 1), value=0)

    async def followed(name: str | None, which_prompt: str | None) -> object:
        index = replay.of(await asyncio.to_thread(_index, cfg, name), which_prompt or "")
        return gr.update(maximum=max(len(index) - 1, 1), value=0)

    async def moved(name: str | None, which_prompt: str | None, place: float) -> tuple[object, ...]:
        index = replay.of(await asyncio.to_thread(_index, cfg, name), which_prompt or "")
        if not index:
            return block(replay.overview(index, 0)), block(""), gr.update(choices=[], value=None)
        n = _within(place, len(index))
        p, rows = index[n]
        listed = [
            (f"{r.answer} · {r.question} · reward {'–' if r.reward is None else f'{r.reward:.2f}'}", r.place) for r in rows
        ]
        first = gr.update(choices=listed[:200], value=listed[0][1])
        return block(replay.overview(index, n)), block(replay.point(p, rows, prompt=which_prompt or "")), first

    async def shown(name: str | None, which_prompt: str | None, place: float, number: int | None, how: str) -> str:
        index = replay.of(await asyncio.to_thread(_index, cfg, name), which_prompt or "")
        directory = runs.find(cfg.runs).get(name or "")
        if not index or directory is None or number is None:
            return block("")
        p, rows = index[_within(place, len(index))]
        if not any(r.place == number for r in rows):
            return block("")  # the slider moved on meanwhile
        try:
            t = await asyncio.to_thread(runs.trajectory, p, int(number))
        except RunError as e:
            return block(f'<p class="trouble">{esc(str(e))}</p>')
        images = await asyncio.to_thread(runs.pictures, directory, t)
        decode, pad = await asyncio.to_thread(_decoder, directory, context)
        return block(trace.trace(t, decode, pad, images, mode=how, name="r"))

    walk = [run, prompt, at]
    seen = ([*walk, which, mode], tokens)
    drawn = [charts, here, which]
    tab.select(opened, [run], [run, charts, here, tokens], **QUIET)
    run.change(chosen, [run], [prompt, at], **QUIET).then(moved, walk, drawn, **QUIET).then(shown, *seen, **QUIET)
    prompt.input(followed, [run, prompt], [at], **QUIET).then(moved, walk, drawn, **QUIET).then(shown, *seen, **QUIET)
    at.change(moved, walk, drawn, trigger_mode="always_last", **QUIET).then(shown, *seen, **QUIET)
    gr.on([which.input, mode.change], shown, *seen, trigger_mode="always_last", **QUIET)

    def step(by: int):
        async def go(name: str | None, which_prompt: str | None, place: float) -> int:
            index = replay.of(await asyncio.to_thread(_index, cfg, name), which_prompt or "")
            return _within(place + by, max(len(index), 1))

        return go

    back.click(step(-1), walk, at, **QUIET)
    forth.click(step(1), walk, at, **QUIET)


def _index(cfg: ServeConfig, name: str | None) -> replay.Index:
    """A run's points with their rollouts in short; empty for a name that is none of a run."""
    directory = runs.find(cfg.runs).get(name or "")
    if directory is None:
        return []
    found = [(p, runs.rows(p)) for p in runs.points(directory)]
    return [(p, r) for p, r in found if r]


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
