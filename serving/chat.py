"""A conversation of questions and answers as the one prompt that the model was trained on, repeated.

Each question is rendered as a rollout's first prompt, with its own pictures; each earlier answer as the turn that gave it,
without its reasoning and searches, which the caller never had. So a single question gives exactly the tokens of a rollout's
prompt, and pictures stay where they were shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_mmsr1 import protocol
from megatron_mmsr1.data.dataset import Prompt
from megatron_mmsr1.data.images import CanonicalImage
from megatron_mmsr1.protocol import IM_END, Segment
from megatron_mmsr1.rollout.agent import Opening
from megatron_mmsr1.rollout.context import Context


@dataclass(slots=True)
class Question:
    text: str
    images: list[bytes] = field(default_factory=list)  # encoded, as they came
    answer: str | None = None  # what was answered; None for the last question


@dataclass(slots=True)
class Chat:
    """`system`: the caller's own words, given to the model before everything else. The last question has no answer yet."""

    questions: list[Question]
    system: str = ""


async def open_chat(context: Context, chat: Chat, prefix: str = "") -> Opening:
    """The conversation as an opening for the agent. Image search looks for the latest picture. Raises ImageError."""
    p, prompts = context.protocol, context.prompts
    # A system prompt of the caller's takes the place of none: the trained prompt's own, if any, stays.
    segments = _system(chat.system, p.system(prompts))
    images: list[CanonicalImage] = []
    for q in chat.questions:
        shown = [await context.canonical(data) for data in q.images]
        images += shown
        segments += p.question(prompts, q.text, len(shown))
        if q.answer is not None:
            segments += [*p.write_answer(protocol.data(q.answer)), protocol.text(f"{IM_END}\n")]
    if prefix:
        segments.append(protocol.text(prefix))
    last = chat.questions[-1]
    pictures = [data for q in reversed(chat.questions) for data in q.images]
    originals = [data for q in chat.questions for data in q.images]
    return Opening(Prompt("chat", last.text, pictures, []), context.message(segments, images, originals), prefix)


def _system(ours: str, trained: str) -> list[Segment]:
    if not ours:
        return [protocol.text(f"<|im_start|>system\n{trained}{IM_END}\n")] if trained else []
    above = f"{trained}\n" if trained else ""
    return [protocol.text(f"<|im_start|>system\n{above}"), protocol.data(ours), protocol.text(f"{IM_END}\n")]
