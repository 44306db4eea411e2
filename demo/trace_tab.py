"""The last answer, token by token."""

from __future__ import annotations

import hashlib

import gradio as gr

from demo import trace
from demo.escape import block, esc
from demo.place import QUIET, html
from demo.steps import Reply, Talk
from megatron_mmsr1.data.decode import ImageError
from megatron_mmsr1.rollout.context import Context


def draw(context: Context, tab: gr.Tab, talk: gr.State) -> None:
    mode = gr.Radio([trace.MASK, trace.CHANCE], value=trace.MASK, label="Colour tokens by", elem_id="trace-mode")
    view = html(elem_id="trace")

    async def show(t: Talk, how: str) -> str:
        return block(await last(context, t, how))

    # One event: of two that run at once, the earlier could be drawn last.
    gr.on([tab.select, mode.change], show, [talk, mode], view, trigger_mode="always_last", **QUIET)


async def last(context: Context, t: Talk, mode: str) -> str:
    """The newest answer of a conversation that has a trajectory."""
    for e in reversed(t.exchanges):
        a = e.reply.outcome
        if a is not None and a.trajectory is not None:
            shown = await pictures(context, t, e.reply)
            head = f'<h2>{esc(e.question)}</h2><p class="note">{esc(_summary(e.reply))}</p>'
            return head + trace.trace(a.trajectory, decoder(context), context.pad_id, shown, mode=mode)
    return '<p class="empty">Ask something in the chat first: its tokens are shown here.</p>'


def decoder(context: Context) -> trace.Decode:
    def decode(ids: list[int]) -> str:
        return context.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    return decode


async def pictures(context: Context, t: Talk, r: Reply) -> dict[str, bytes]:
    """PNGs that a trajectory shows, by hash: the conversation's and those that its searches found."""
    found: dict[str, bytes] = {}
    for data in (d for e in t.exchanges for d in e.images):
        try:
            image = await context.canonical(data)
        except ImageError:
            continue  # it was refused as a question, too
        found[image.sha256] = image.png
    for s in r.outcome.sources if r.outcome is not None else ():
        if s.image is not None:
            found[hashlib.sha256(s.image).hexdigest()] = s.image
    return found


def _summary(r: Reply) -> str:
    a = r.outcome
    assert a is not None and a.trajectory is not None
    turns = f"{len(a.trajectory.turns)} turns, {len(a.trajectory)} tokens, ended: {a.status.value.replace('_', ' ')}."
    return f"{turns} It wanted another search; the answer was asked for after this." if a.forced else turns
