"""Scripted policies through the real agent loop, a real search server and the real reward: the table's bounds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_mmsr1.atlas.build import build
from megatron_mmsr1.atlas.policies import POLICIES, run_policy
from megatron_mmsr1.atlas.policy import Script, oracle, question_of
from megatron_mmsr1.atlas.questions import TOOLS
from megatron_mmsr1.atlas.spec import KINDS, AtlasSpec
from megatron_mmsr1.config import RunConfig, parse
from megatron_mmsr1.data.dataset import Prompt, PromptDataset
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.server.launch import launch
from megatron_mmsr1.trajectory import Status, Trajectory

ACTIONS = {"i": "image_search", "t": "text_search", "c": "crop"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("atlas") / "world"
    build(AtlasSpec(entities=40, known=4, train_questions=10, heldout_questions=120, noise_pages=10), out)
    return out


@pytest.fixture(scope="module")
def cfg(world: Path) -> RunConfig:
    return parse(
        {
            "model": {"path": str(world / "model"), "max_pixels": 3136},
            "protocol": {"prompts": "atlas", "text_searches": 1, "top_k": 2, "max_prompt_tokens": 64, "max_turn_tokens": 24},
            "tools": {"crop": {"limit": 1}},
            "reward": {"crop_penalty": 0.1},
            "search": {"corpus": str(world), "text_top_sentences": 1},
        }
    )


@pytest.fixture(scope="module")
def prompts(world: Path) -> list[Prompt]:
    data = PromptDataset([world / "heldout.parquet"])
    return [data[i] for i in range(len(data))]


@pytest.fixture(scope="module")
def results(world: Path, cfg: RunConfig, prompts: list[Prompt]) -> Iterator[dict[str, list[Trajectory]]]:
    with launch(cfg.search, cache_path=None, log=world / "search.log") as server:
        yield {name: run_policy(name, prompts, cfg, server.url) for name in POLICIES}


def by_kind(done: list[Trajectory], kind: str) -> list[Trajectory]:
    found = [t for t in done if t.extra["kind"] == kind]
    assert found
    return found


def test_every_conversation_ends_well(results: dict[str, list[Trajectory]]) -> None:
    for name, done in results.items():
        for t in done:
            assert t.status is Status.ANSWERED, (name, t.status, t.extra.get("error"))
            assert not t.infrastructure_failure


def test_the_oracle_is_always_right_and_uses_tools_only_where_it_must(results: dict[str, list[Trajectory]]) -> None:
    """Reward 1 without a tool, 0.9 x 0.9 + 0.1 = 0.91 with one or two searches, or a crop."""
    for kind in KINDS:
        for t in by_kind(results["oracle"], kind):
            assert [turn.action for turn in t.turns if turn.action] == [*(ACTIONS[a] for a in TOOLS[kind]), "answer"]
            assert t.reward == pytest.approx(0.91 if TOOLS[kind] else 1.0)


def test_never_searching_answers_what_is_search_free_only(results: dict[str, list[Trajectory]]) -> None:
    for kind in KINDS:
        for t in by_kind(results["never"], kind):
            assert not t.searched
            assert t.reward == pytest.approx(0.1 if TOOLS[kind] else 1.0)


def test_always_searching_pays_and_is_right_unless_it_should_have_cropped(results: dict[str, list[Trajectory]]) -> None:
    for kind in KINDS:
        for t in by_kind(results["always"], kind):
            assert t.called == ["image_search", "text_search"]
            assert t.reward == pytest.approx(0.1 if kind == "crop" else 0.91)


def test_chance_lies_between(results: dict[str, list[Trajectory]]) -> None:
    mean = {name: sum(t.reward or 0.0 for t in done) / len(done) for name, done in results.items()}
    # The mix is even: oracle (2 x 1 + 4 x 0.91) / 6, never (2 x 1 + 4 x 0.1) / 6, always (5 x 0.91 + 0.1) / 6.
    assert mean["oracle"] == pytest.approx(0.94) and mean["never"] == pytest.approx(0.4)
    assert mean["always"] == pytest.approx(0.775)
    assert 0.3 < mean["random"] < 0.775


def test_conversations_fit_the_limits_of_the_config(results: dict[str, list[Trajectory]]) -> None:
    assert max(len(t) for t in results["always"]) <= 64 + 320


def test_a_policy_reads_the_search_it_is_told_to(cfg: RunConfig, prompts: list[Prompt]) -> None:
    """Without a search server every search is refused: the oracle then knows no more than `never`, and says so. A crop needs
    no server."""
    for t in run_policy("oracle", prompts[:20], cfg, None):
        assert t.reward_parts["acc"] == (0.0 if t.category == "search_required" else 1.0)


def test_wrong_names_and_foreign_questions_are_refused(cfg: RunConfig, prompts: list[Prompt]) -> None:
    with pytest.raises(UsageError, match="oracle, never, always, random"):
        run_policy("orakel", prompts, cfg, None)
    with pytest.raises(UsageError, match="x1 of data"):
        run_policy("oracle", [Prompt("x1", "who ?", [], ["he"])], cfg, None)


def test_a_script_knows_its_prompts_only(prompts: list[Prompt]) -> None:
    script = Script(oracle, prompts[:1], min_pixels=3136, max_pixels=3136)
    with pytest.raises(LookupError):
        script.turn("<|im_start|>user\n another question<|im_end|>\n<|im_start|>assistant\n", prompts[0].images, 0)
    assert question_of(prompts[0]).text == prompts[0].question
