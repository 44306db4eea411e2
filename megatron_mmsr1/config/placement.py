"""The `placement:` section: on which nodes and GPUs the parts of a run are."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from megatron_mmsr1.config.section import Affects, Section

JUDGE_URL = "MMSR1_JUDGE_URL"  # in the environment of who scores: the base URL of the judge that the run has started


class TrainerPlacement(Section):
    nodes: int = Field(default=1, gt=0, description="nodes that the ranks are spread over evenly, the first ones of the job")
    gpus_per_node: int | None = Field(
        default=None, ge=0, description="GPUs of each; default: one a rank where the node has GPUs, else none"
    )


class EnginesPlacement(Section):
    nodes: int | None = Field(
        default=None, gt=0, description="nodes of the engines' own, after the trainer's; default: the trainer's nodes"
    )
    count: int = Field(default=1, gt=0, description="engines that are started, spread evenly over their nodes")
    gpus_each: int | None = Field(
        default=None, ge=0, description="GPUs of each; default: its tensor-parallel size where the node has GPUs, else none"
    )


class ModelPlacement(Section):
    """A language model that is started for the run and answers chat completions; a server of SGLang's."""

    model: str | None = Field(
        default=None, description="Hugging Face checkpoint with a chat template; default: none is started"
    )
    node: int | None = Field(default=None, ge=0, description="counted from 0; default: the job's last node")
    gpus: int | None = Field(
        default=None, ge=0, description="default: its tensor-parallel size where the node has GPUs, else none"
    )
    sglang: dict[str, Any] = Field(default_factory=dict, description="native server arguments, e.g. mem_fraction_static: 0.7")


class SummariserPlacement(ModelPlacement):
    """A model that summarises pages for the run's own search server, in place of `search.summarise.url`; SGLang serves it."""


class JudgePlacement(ModelPlacement):
    """A model that judges answers, for rewards without a `url` of their own; SGLang serves it."""

    name: str = Field(default="judge", min_length=1, description="the model id that those rewards pin (`model`)")


class PlacementConfig(Section):
    AFFECTS = Affects.MACHINE

    trainer: TrainerPlacement = TrainerPlacement()
    engines: EnginesPlacement = EnginesPlacement()
    summariser: SummariserPlacement = SummariserPlacement()
    judge: JudgePlacement = JudgePlacement()
    colocated: bool = Field(
        default=False,
        description="engines stand on the trainer's GPUs: they give their memory back while it trains, and it does while "
        "they generate",
    )
    search: int = Field(default=0, ge=0, description="node of the search server, counted from 0")
    join_timeout_s: float = Field(default=300, gt=0, description="how long the first node waits for the others")
    hung_after_s: float = Field(
        default=1800, gt=0, description="a rank that has not moved for so long is named with its stack, and the run ends"
    )
    restarts: int = Field(
        default=0,
        ge=0,
        description="how often ranks that died are started again from the latest checkpoint; refused when two lives in a row "
        "made no step",
    )
