"""The contract of a tool: whatever is registered keeps it, the documented example keeps it, what breaks it is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_checkpoint
from contracts import tool as contract
from doc_examples import write_examples
from rollout_fixtures import ScriptedEngine, ScriptedSearch, context, prompt

from megatron_mmsr1 import config, tools
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.rollout.agent import Seeds, open_group, run_trajectory
from megatron_mmsr1.tools.base import ToolSettings
from megatron_mmsr1.trajectory import Status, ToolStatus

ARGUMENTS = {"image_search": {}, "text_search": {"query": 'a "b" c'}, "crop": {"bbox_2d": [0, 0, 500, 900], "image": 2}}
TOKENIZER = tiny_checkpoint.tokenizer()
ANSWER = "<reason>r</reason><answer>x</answer><|im_end|>"


@pytest.mark.parametrize("name", tools.REGISTRY.names())
async def test_every_registered_tool_keeps_the_contract(name: str) -> None:
    await contract.check(tools.get(name), ARGUMENTS[name])


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> config.RunConfig:
    """The config of docs/extend/tool.md, read where its file lies."""
    import yaml

    paths = write_examples("tool.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    return config.parse({"model": {"path": "m"}} | yaml.safe_load(paths["count.yaml"].read_text()))


async def play(cfg: config.RunConfig, *said: str):
    ctx = context(ScriptedSearch(), tokenizer=TOKENIZER, tools=cfg.tools)
    return await run_trajectory(ctx, ScriptedEngine(TOKENIZER, said), await open_group(ctx, prompt()), seeds=Seeds(0, 0, 0, 0))


async def test_the_documented_tool_runs_by_name_from_yaml(example: config.RunConfig) -> None:
    """In the agent loop, with its own setting, within its limit; its config survives the way to another process."""
    again = config.RunConfig.model_validate_json(example.model_dump_json())
    await contract.check(tools.configured(again.tools)["count"], {"word": "search"})
    t = await play(again, "<count>search</count><|im_end|>", ANSWER)
    assert t.status is Status.ANSWERED and t.called == ["count"] and t.searched
    assert [(c.kind, c.query, c.status) for c in t.tool_calls] == [("count", "search", ToolStatus.OK)]
    assert "Result: <information>6 characters</information>" in t.turns[2].text
    assert t.calls_allowed == 2  # rounds: 3, the last of which must answer


async def test_a_tool_that_raises_ends_the_run_with_its_file(example: config.RunConfig) -> None:
    tool = tools.REGISTRY.get("count_tool.py:Count")
    original = tool.run

    async def broken(self, arguments, scene):
        raise ZeroDivisionError("oops")

    tool.run = broken
    try:
        with pytest.raises(RunError, match=r"the tool count \(.*count_tool\.py\) raised ZeroDivisionError: oops"):
            await play(example, "<count>search</count><|im_end|>")
    finally:
        tool.run = original


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class T: ...", "must be a subclass of megatron_mmsr1.tools.Tool"),
        ("from megatron_mmsr1.tools import Tool\nclass T(Tool):\n    description = 'd'", "it does not define run"),
        (
            "from megatron_mmsr1.tools import Tool\nclass T(Tool):\n    def run(self, arguments, scene): ...",
            "run must be an async method; it has no description",
        ),
    ],
)
def test_a_broken_tool_is_refused_with_its_file_and_the_rule(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UsageError) as e:
        config.parse({"model": {"path": "m"}, "tools": {"mine": {"use": f"{file}:T"}}})
    assert str(file) in str(e.value) and said in str(e.value)


async def test_a_tool_that_takes_too_long_is_an_outage(example: config.RunConfig) -> None:
    import asyncio

    from megatron_mmsr1.config import RolloutConfig

    class Slow(tools.REGISTRY.get("count_tool.py:Count")):
        async def run(self, arguments, scene):
            await asyncio.sleep(60)
            raise AssertionError("unreachable")

    ctx = context(ScriptedSearch(), tokenizer=TOKENIZER, tools=example.tools, rollout=RolloutConfig(tool_timeout_s=0.01))
    own = example.tools["count"]
    assert isinstance(own, ToolSettings)
    ctx.tools = {**ctx.tools, "count": Slow(own, "count")}
    engine = ScriptedEngine(TOKENIZER, ["<count>a</count><|im_end|>", ANSWER])
    t = await run_trajectory(ctx, engine, await open_group(ctx, prompt()), seeds=Seeds(0, 0, 0, 0))
    assert t.tool_calls[0].status is ToolStatus.TIMEOUT and t.infrastructure_failure
