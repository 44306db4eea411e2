"""Scripted policies: what a model should reach (oracle), and the habits that it must not fall into (never, always, random).

They run in the rollout's own agent loop in place of an engine, against the real search server, scored by the real reward.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from megatron_mmsr1.atlas.policy import Policy, Script, always, at_random, never, oracle
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.images import ImageStore
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.protocol import IM_END
from megatron_mmsr1.rollout.engine import Generation
from megatron_mmsr1.rollout.generation import OnTokens
from megatron_mmsr1.trajectory import Trajectory

if TYPE_CHECKING:
    from megatron_mmsr1.data.dataset import Prompt

POLICIES: dict[str, Policy] = {"oracle": oracle, "never": never, "always": always, "random": at_random}
IN_FLIGHT = 64


class ScriptedEngine:
    """A `Sampler` with a script for weights: every token of its turns has log-prob 0, weight version 0."""

    def __init__(self, script: Script, tokenizer: Any) -> None:
        self._script, self._tokenizer = script, tokenizer

    async def generate(
        self,
        engine_ids: Sequence[int],
        images: Sequence[bytes],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        banned_ids: Sequence[int] = (),
        on_tokens: OnTokens | None = None,
    ) -> Generation:
        conversation = self._tokenizer.decode(list(engine_ids), skip_special_tokens=False)
        said = self._script.turn(conversation, images, seed)
        ids = self._tokenizer.encode(said + IM_END, add_special_tokens=False)
        finish = "stop" if len(ids) <= max_new_tokens else "length"
        ids = ids[:max_new_tokens]
        return Generation(ids, [0.0] * len(ids), 0, finish)


def run_policy(name: str, prompts: Sequence[Prompt], cfg: RunConfig, search: str | None) -> list[Trajectory]:
    """One scored trajectory a prompt, in their order, by the policy of that name. `search`: the search server's URL.

    Raises UsageError for an unknown name, and for prompts that are not of an Atlas world.
    """
    if name not in POLICIES:
        raise UsageError(f"no policy {name!r}: there are {', '.join(POLICIES)}")
    require_atlas(prompts)
    script = Script(POLICIES[name], prompts, min_pixels=cfg.model.min_pixels, max_pixels=cfg.model.max_pixels)
    return asyncio.run(_run(script, prompts, cfg, search))


def require_atlas(prompts: Sequence[Prompt]) -> None:
    """UsageError that names the first prompt that is not of an Atlas world."""
    for p in prompts:
        if not p.images or "kind" not in p.extra or "phrasing" not in p.extra:
            raise UsageError(f"scripted policies answer Atlas questions only; {p.prompt_id} of data.heldout is none")


async def _run(script: Script, prompts: Sequence[Prompt], cfg: RunConfig, search: str | None) -> list[Trajectory]:
    from megatron_mmsr1.reward import score_trajectory
    from megatron_mmsr1.rollout.agent import Seeds, open_group, run_trajectory
    from megatron_mmsr1.rollout.context import Context, search_client

    client = search_client(cfg, search)
    context = Context.open(cfg, client, ImageStore(None))
    engine = ScriptedEngine(script, context.tokenizer)
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def one(index: int, prompt: Prompt) -> Trajectory:
        async with slots:
            opening = await open_group(context, prompt)
            t = await run_trajectory(context, engine, opening, seeds=Seeds(cfg.seed, -1, index, 0))
        await asyncio.to_thread(score_trajectory, t, cfg.reward)
        return t

    try:
        return list(await asyncio.gather(*(one(i, p) for i, p in enumerate(prompts))))
    finally:
        if client is not None:
            await client.close()
