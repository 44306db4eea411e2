"""A person's own reward, policy loss and tool, in files outside the package, named in the config: the real loop runs them, and
the trained model is served with its tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import launch_engine
from doc_examples import write_examples
from gateway_fixtures import ask, served
from loop_fixtures import ROOT, metrics, mmsr1, settings
from serving_fixtures import questions

from megatron_mmsr1.rollout.dump import read_dump
from serving.settings import load

pytestmark = pytest.mark.slow  # minutes of real loops: ./scripts/test.sh --slow

SHORT = ("data.prompts_per_step=4", "data.group_size=4", "train.steps=2", "data.heldout=[]")


# Under the name, and so the syntax, of a tool that the cold start calls by itself.
NOTEBOOK = """
from pydantic import Field

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.tools import Result, Tool, ToolSettings


class Query(Section):
    query: str = Field(min_length=1, description="what to look up")


class Settings(ToolSettings):
    says: str = ""


class Notebook(Tool):
    description = "Look something up in the notebook."
    Arguments = Query
    Settings = Settings

    async def run(self, arguments, scene):
        return Result.of(f"{self.settings.says} {arguments.query}", backend="notebook")
"""
SAYS = "My notebook says:"


@pytest.fixture(scope="module")
def trained(atlas_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps; its directory."""
    home = tmp_path_factory.mktemp("own")
    files = write_examples("reward.md", home) | write_examples("algorithm.md", home)
    (home / "notebook.py").write_text(NOTEBOOK)
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "atlas.yaml").read_text())
    brief = {"weight": 0.5, "reward": {"name": f"{files['brief.py']}:Brief", "words": 8}}
    config["reward"] = {"name": "sum", "terms": [{"weight": 1.0, "reward": "mmsearch"}, brief]}
    config["tools"]["text_search"] = {"use": f"{home / 'notebook.py'}:Notebook", "limit": 2, "says": SAYS}
    squared = {"name": f"{files['squared.py']}:Squared", "width": 0.5}
    config["algorithm"] = {"policy_loss": squared, "correction": "tis", "average": "sequence", "updates_per_step": 2}
    (home / "own.yaml").write_text(yaml.safe_dump(config))
    done = mmsr1("train", str(home / "own.yaml"), *settings(atlas_world, home / "run", *SHORT))
    assert done.returncode == 0, done.stderr[-3000:]
    return home / "run"


def test_own_reward_and_loss_run_in_the_loop(trained: Path) -> None:
    rows = metrics(trained)
    assert [r["step"] for r in rows] == [0, 1]
    assert all(r["infrastructure/rewards"] == 0 for r in rows)
    updated = [r for r in rows if r.get("loss_tokens")]
    assert updated and all(0 < r["correction_mean"] <= 2 and r["grad_norm"] > 0 for r in updated)
    for t in read_dump(trained / "rollouts", 0)[0]:
        # The sum of both, each scored by its own file.
        assert t.reward == t.reward_parts["mmsearch/reward"] + 0.5 * t.reward_parts["Brief/reward"]
        assert t.reward_parts["words"] == len(t.assistant_texts[-1].split())


def test_own_tool_is_called_in_the_loop_and_read_by_the_model(trained: Path) -> None:
    """Every text search of the model went to the notebook, none to the search server, and what it said is in the conversation,
    as tokens that are not trained on."""
    done = [t for step in range(2) for t in read_dump(trained / "rollouts", step)[0]]
    looked_up = [(t, turn, c) for t in done for turn in t.turns if (c := turn.tool) is not None and c.kind == "text_search"]
    assert looked_up
    for t, turn, call in looked_up:
        assert call.backend == "notebook" and call.query and f"{SAYS} {call.query}" in turn.text
        assert "text_search" in t.called and not any(t.loss_mask[turn.start : turn.end])
    assert not [c for t in done for c in t.tool_calls if c.kind == "text"]  # "text": of the search that it stands in for
    assert all(r["infrastructure/trajectories"] == 0 for r in metrics(trained))


def test_own_tool_is_served_with_the_model(trained: Path, atlas_world: Path, atlas_search: str, tmp_path: Path) -> None:
    """By the serving.yaml that the run wrote beside its weights."""
    cfg = load(str(trained / "model"), None, [])
    with (
        launch_engine(trained / "model", tmp_path / "engine.log", cfg.engine) as engine,
        served(cfg, [engine.url], atlas_search) as gateway,
    ):
        said = []
        for kind in ("text", "both"):
            answer = gateway.post({"model": cfg.name, "messages": ask(questions(atlas_world)[kind]), "search": {"trace": True}})
            assert answer.status_code == 200, answer.text
            said.append(json.dumps(answer.json()))
    assert any(SAYS in s and "notebook" in s for s in said)


def test_broken_ones_are_refused_before_anything_starts(atlas_world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    broken = tmp_path / "broken.py"
    broken.write_text("class Mine: ...\n")
    for key, rule in (("reward", "must be a subclass"), ("algorithm.policy_loss", "has no method losses")):
        done = mmsr1("train", "configs/atlas.yaml", *settings(atlas_world, out, *SHORT, f"{key}={broken}:Mine"))
        assert done.returncode == 2
        assert str(broken) in done.stderr and rule in done.stderr and "Traceback" not in done.stderr
    assert not (out / "logs").exists()
