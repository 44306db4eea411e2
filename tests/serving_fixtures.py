"""A served model in small: the shipped Atlas checkpoint on a real SGLang server, a real search server over a small world.

The fixtures `atlas_world`, `atlas_engine` and `atlas_search` are in conftest.py, one a session.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loop_fixtures import COLD_START

from megatron_mmsr1.data.dataset import Prompt, PromptDataset
from megatron_mmsr1.trajectory import Trajectory
from serving.answering import Answered, Answerer, Ask, Delta, Step
from serving.chat import Chat, Question
from serving.settings import ServeConfig

LIMITS = {
    "prompts": "atlas",
    "max_rounds": 3,
    "image_searches": 1,
    "text_searches": 2,
    "top_k": 2,
    "max_prompt_tokens": 64,
    "max_turn_tokens": 24,
    "max_response_tokens": 320,
}


def atlas_config(world: Path, **more: Any) -> ServeConfig:
    """The limits of configs/atlas.yaml over the shipped checkpoint."""
    raw: dict[str, Any] = {
        "model": {"path": str(COLD_START), "dtype": "float32", "min_pixels": 3136, "max_pixels": 3136},
        "protocol": LIMITS,
        "tools": {"crop": {"limit": 1}},
        "search": {"corpus": str(world), "text_top_sentences": 1},
        "forced_reason": " need facts",  # in the words of its own training
        "engine": {"sglang": {"max_total_tokens": 16384}},
    }
    return ServeConfig.model_validate(raw | more)


def questions(world: Path) -> dict[str, Prompt]:
    """The first held-out question of each kind: image, text, both, picture, known."""
    found: dict[str, Prompt] = {}
    for p in PromptDataset([str(world / "heldout.parquet")]):
        found.setdefault(str(p.extra["kind"]), p)
    return found


def chat(prompt: Prompt) -> Chat:
    return Chat([Question(prompt.question, list(prompt.images))])


async def steps(answerer: Answerer, ask: Ask) -> list[Step]:
    return [s async for s in answerer.answer(ask)]


def ended(told: list[Step]) -> Answered:
    """The last event, which is the only Answered, and says what the deltas said."""
    last = told[-1]
    assert isinstance(last, Answered) and sum(isinstance(s, Answered) for s in told) == 1
    assert last.text == "".join(s.text for s in told if isinstance(s, Delta) and s.kind == "answer")
    assert all(s.text and "<" not in s.text for s in told if isinstance(s, Delta))
    assert [s.n for s in last.sources] == list(range(1, len(last.sources) + 1))
    return last


def trajectory_of(told: list[Step]) -> Trajectory:
    """What an answer came of; a failure may have none."""
    trajectory = ended(told).trajectory
    assert trajectory is not None
    return trajectory
