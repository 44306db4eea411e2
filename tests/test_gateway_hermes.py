"""Hermes over a real engine: a recorded rollout, asked again through the gateway, gives the same ids."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import tiny_checkpoint
from conftest import launch_engine
from gateway_fixtures import ask, served
from rollout_fixtures import prompt

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.images import ImageStore
from megatron_mmsr1.rollout import engines
from megatron_mmsr1.rollout.agent import Seeds, open_group, run_trajectory
from megatron_mmsr1.rollout.context import Context
from megatron_mmsr1.trajectory import Trajectory
from serving.settings import ServeConfig


def said(name: str, arguments: dict) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


# One token each: a chain of bytes could not say JSON, in which the same byte has many successors.
CROP, SMALL = said("crop", {"bbox_2d": [0, 0, 500, 500]}), said("crop", {"bbox_2d": [0, 0, 9, 9], "image": 1})
COMMON = {
    "protocol": {
        "name": "hermes",
        "max_rounds": 3,
        "max_prompt_tokens": 3000,
        "max_turn_tokens": 24,
        "max_response_tokens": 900,
    },
    "tools": {"crop": {"limit": 2}},
}


def test_a_recorded_rollout_through_the_gateway_gives_the_same_ids(tmp_path: Path) -> None:
    chain = [f"\n{CROP}<|im_end|>", f"\n{SMALL}<|im_end|>", "\n<answer>x</answer><|im_end|>"]
    path = tiny_checkpoint.write(tmp_path / "model", seed=4, chain=chain, phrases=[CROP, SMALL])
    model = {"path": str(path), "dtype": "float32", "min_pixels": 56 * 56, "max_pixels": 28 * 28 * 64}
    run = RunConfig.model_validate(COMMON | {"model": model})
    serve = ServeConfig.model_validate(COMMON | {"model": model, "gateway": {"name": "m"}})
    with launch_engine(path, tmp_path / "engine.log") as engine:
        recorded = asyncio.run(record(run, engine.url))
        assert any(t.called and t.called[-1] == "crop" and len(t.tool_calls) == 2 for t in recorded)
        with served(serve, [engine.url], None) as gateway:
            for seed, t in enumerate(recorded):
                body = {"search": {"trace": True}}
                whole = gateway.client().chat.completions.create(
                    model="m", messages=ask(prompt(1)), seed=seed, temperature=1, extra_body=body
                )
                trace = whole.trace  # pyright: ignore[reportAttributeAccessIssue]
                assert trace["token_ids"] == t.token_ids.tolist() and trace["loss_mask"] == t.loss_mask.tolist()
                assert trace["logprobs"] == pytest.approx(t.logprobs.tolist(), abs=1e-4)


async def record(cfg: RunConfig, url: str) -> list[Trajectory]:
    """Rollouts of one prompt under the seeds 0 to 7."""
    context = Context.open(cfg, None, ImageStore(None))
    engine = engines.get("sglang").client([url], timeout_s=120, retries=0, stop_ids=[context.stop_id])
    opening = await open_group(context, prompt(1))
    try:
        return [
            await run_trajectory(context, engine.conversation(f"g{s}"), opening, seeds=Seeds(s, 0, 0, 0), temperature=1.0)
            for s in range(8)
        ]
    finally:
        await engine.close()
