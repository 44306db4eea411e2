"""An answer from a model that would rather go on searching: for serving, where no answer is worth less than a doubtful one.

A rollout ends where a search is no longer allowed. Here the last turn is taken back to where its search began, the answer's
tag is written in its place, and the model goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from megatron_mmsr1.rollout.agent import OnTokens
from megatron_mmsr1.rollout.context import Context
from megatron_mmsr1.rollout.engine import Generation
from megatron_mmsr1.rollout.engines.base import Sampler
from megatron_mmsr1.trajectory import Trajectory, collapse_pads


@dataclass(slots=True, frozen=True)
class ForcedAnswer:
    """`prefix`: what was written before the model went on, with the answer's tag; `text`: how it went on."""

    prefix: str
    text: str
    generation: Generation


async def force_answer(
    context: Context,
    engine: Sampler,
    trajectory: Trajectory,
    images: list[bytes],
    *,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    on_tokens: OnTokens | None = None,
) -> ForcedAnswer:
    """Let the model answer where `trajectory`, whose last turn is the assistant's, left off. Raises EngineError.

    `images`: the encoded pictures of the trajectory, in order. The trajectory is not changed.
    """
    last = trajectory.turns[-1]
    begun = last.text[
        : min((at for s in context.protocol.call_opens if (at := last.text.find(s)) >= 0), default=len(last.text))
    ]
    prefix = begun + context.protocol.answer_open
    pads = [context.pictures.tokens(i.grid_thw) for i in trajectory.images]
    ids = collapse_pads(trajectory.token_ids[: last.start], context.pad_id, pads)
    ids += context.tokenizer.encode(prefix, add_special_tokens=False)
    generation = await engine.generate(
        ids,
        images,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        banned_ids=context.banned_ids,
        **({} if on_tokens is None else {"on_tokens": partial(on_tokens, len(trajectory.assistant_texts))}),
    )
    return ForcedAnswer(prefix, context.decode(generation.token_ids), generation)
