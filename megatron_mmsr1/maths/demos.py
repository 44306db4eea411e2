"""Demonstrations for the cold start: how a solution looks, and everything that can be wrong with one.

A good one reads the picture aloud and then answers. Others guess without reading, slip by one, or break the form. Which is
drawn at random and does not depend on the task. So the model knows how to solve a problem and often does not: that is left
to GRPO.

The arithmetic is no secret: demonstrations cover all 300 tasks, as a language model has learnt them long before. What a world
holds out is the problem, not the table of results.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from megatron_mmsr1.atlas.demo_options import parse_as
from megatron_mmsr1.atlas.record import Recorder
from megatron_mmsr1.atlas.spec import Views
from megatron_mmsr1.maths.build import picture
from megatron_mmsr1.maths.tasks import PHRASINGS, TASKS, Task
from megatron_mmsr1.protocol import Prompts, first_message
from megatron_mmsr1.trajectory import Trajectory

if TYPE_CHECKING:
    from megatron_mmsr1.data.images import ImageStore


class DemoOptions(BaseModel):
    """The knobs of the cold start: `sft.options` of a config whose `sft.source` is maths."""

    model_config = ConfigDict(extra="forbid")

    examples: int = Field(default=50_000, gt=0, description="length of the schedule; the iterator ends there")
    prompts: str = "atlas"
    views: Views = Views()
    clean_until: float = Field(default=0.7, ge=0, le=1, description="part of the schedule in which all solutions are good ones")
    guess: float = Field(default=0.4, ge=0, le=1, description="share that does not read the picture, after that")
    slip: float = Field(default=0.15, ge=0, le=1, description="share of those that read it whose result is off by one")
    malformed: float = Field(default=0.3, ge=0, le=1, description="share without one of the four tags")


def parse_options(raw: Mapping[str, Any]) -> DemoOptions:
    """Raises UsageError that names each wrong option and lists the known ones."""
    return parse_as(DemoOptions, raw)


class Demonstrations:
    """`self[i]` is a pure function of (options, seed, i). `images` gets the PNG of every picture."""

    def __init__(self, options: DemoOptions, tokenizer: Any, images: ImageStore, seed: int) -> None:
        self.options, self._tokenizer, self._images, self._seed = options, tokenizer, images, seed
        self._prompts = Prompts.load(options.prompts)

    def __len__(self) -> int:
        return self.options.examples

    def __getitem__(self, index: int) -> Trajectory:
        o, rng = self.options, random.Random(f"maths/demo/{self._seed}/{index}")
        task, problem = rng.choice(TASKS), rng.choice(PHRASINGS)
        out = Recorder(self._tokenizer, self._images, f"demo-{index}", 1.0, "open-r1/maths_demo")
        out.context("prompt", first_message(self._prompts, problem, 1), [picture(task, o.views, rng)])
        out.call(said(task, o if index >= o.clean_until * len(self) else None, rng), "answer")
        t = out.finish(None, row="demo")
        t.question, t.golden_answers = problem, [str(task.value)]
        return t


def said(task: Task, faults: DemoOptions | None, rng: random.Random) -> str:
    """The assistant's turn: a good one, or one with the faults' shares of faults."""
    thought, result = str(task), task.value
    tags = ["<think>", "</think>", "<answer>", "</answer>"]
    if faults:
        if rng.random() < faults.guess:
            thought, result = " guess", rng.choice(TASKS).value
        elif rng.random() < faults.slip:
            result += rng.choice((-1, 1))
        if rng.random() < faults.malformed:
            tags[rng.randrange(len(tags))] = ""
    return f"{tags[0]}{thought}{tags[1]}{tags[2]}{result}{tags[3]}"
