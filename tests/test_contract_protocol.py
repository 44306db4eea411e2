"""The contract of a protocol, and Hermes' JSON: what is written is read, what is broken is named, nothing raises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_checkpoint
from contracts import protocol as contract
from doc_examples import write_examples
from hypothesis import given
from hypothesis import strategies as st
from rollout_fixtures import ScriptedEngine, ScriptedSearch, context, prompt

from megatron_mmsr1 import protocol, tools
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.protocol import IM_END, Answer, Call, ImageSearch, Invalid, Prompts, TextSearch, call
from megatron_mmsr1.rollout.agent import Seeds, open_group, run_trajectory
from megatron_mmsr1.trajectory import Status, ToolStatus

HERMES = protocol.get("hermes")
TOKENIZER = tiny_checkpoint.tokenizer()


@pytest.mark.parametrize("name", protocol.REGISTRY.names())
def test_every_registered_protocol_keeps_the_contract(name: str) -> None:
    contract.check(protocol.REGISTRY.get(name))


def test_the_documented_protocol_keeps_the_contract(tmp_path: Path) -> None:
    paths = write_examples("protocol.md", tmp_path)
    contract.check(protocol.REGISTRY.get(f"{paths['brackets.py']}:Brackets"))


def test_a_broken_protocol_is_refused_with_its_file_and_the_rule(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from megatron_mmsr1.protocol import TurnProtocol\nclass P(TurnProtocol):\n    def parse(self, text): ...")
    with pytest.raises(UsageError, match=r"mine\.py.* it does not define call_opens, observations, open_call"):
        protocol.get(f"{file}:P")


# ------------------------------------------------------------------------------------------------------------ Hermes
def said(*calls: dict | str) -> str:
    return "\n".join(f"<tool_call>\n{c if isinstance(c, str) else json.dumps(c)}\n</tool_call>" for c in calls)


TEXT = {"name": "text_search", "arguments": {"query": "who"}}


@pytest.mark.parametrize(
    ("text", "action"),
    [
        (said(TEXT), TextSearch("who")),
        ("I need facts.\n" + said(TEXT) + IM_END, TextSearch("who")),
        (said({"name": "image_search", "arguments": {}}), ImageSearch()),
        (said({"name": "image_search"}), ImageSearch()),
        (said({"name": "text_search", "arguments": '{"query": "who"}'}), TextSearch("who")),
        (said('{"name": "text_search", "arguments": {"query": "a\nb"}}'), TextSearch("a\nb")),
        (said({"name": "t", "arguments": {"x": "</tool_call>"}}), Call("t", {"x": "</tool_call>"})),
        (f"<think>{said('broken')}</think>{said(TEXT)}", TextSearch("who")),
        (f"<think>{said(TEXT)}</think>It is red.", Answer("It is red.")),
        ("The sky. <answer> blue </answer>", Answer("blue")),
        ("It is\nblue." + IM_END, Answer("It is\nblue.")),
        ("", Invalid("the turn says nothing")),
        ("<think>cut", Invalid("the turn says nothing")),
        (said("[1]"), Invalid('tool call 1 is no object with a "name"')),
        (said({"name": "", "arguments": {}}), Invalid('tool call 1 is no object with a "name"')),
        (said({"name": "t", "arguments": [1]}), Invalid('tool call 1: its "arguments" are no object')),
        (said(TEXT).removesuffix("</tool_call>"), Invalid("tool call 1 does not end with </tool_call> after its JSON")),
    ],
)
def test_turns(text: str, action: protocol.Action) -> None:
    assert HERMES.parse(text) == action


@pytest.mark.parametrize("bad", ["{", "{'name': 'x'}", '{"name": NaN}', "[" * 100_000, '{"a":' * 50_000, "9" * 5000])
def test_what_is_no_json_is_named_and_never_raises(bad: str) -> None:
    for n, text in enumerate((said(bad), said(TEXT, bad)), 1):
        action = HERMES.parse(text)
        assert isinstance(action, Invalid) and f"tool call {n} is no" in action.reason


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
strings = st.text(max_size=20) | st.sampled_from(['"', '\\"', "</tool_call>", "<tool_call>", "\n", "\u2028", "日本", "\\u00e9"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(strings, inner, max_size=3),
    max_leaves=6,
)
calls = st.builds(call, names, st.dictionaries(strings, values, max_size=3))


@given(st.lists(calls, min_size=1, max_size=4), st.text(" \n", max_size=3))
def test_any_calls_read_back_in_order(made: list[Call], space: str) -> None:
    """Nested quotes, closing tags in strings, other scripts: what is written is read, all calls of it, in order."""
    first, *others = made
    turn = Call(first.name, first.arguments, tuple(others)) if others else first
    assert HERMES.parse(f"Let me see.{space}{HERMES.write_call(turn)}{space}{IM_END}") == turn


PIECES = ["<tool_call>", "</tool_call>", "<answer>", "</answer>", '{"name": "t"}', "{", "x", "</think>"]


@given(st.lists(st.sampled_from(PIECES), max_size=8))
def test_any_turn_is_one_action(pieces: list[str]) -> None:
    text = "".join(pieces)
    action = HERMES.parse(text)
    assert isinstance(action, Answer | Call | Invalid)
    after = text.rpartition("</think>")[2]
    assert isinstance(action, Answer) <= ("<tool_call>" not in after)


def test_the_prompt_is_that_of_qwens_template() -> None:
    """Golden: Qwen2.5's chat template with one tool, then the turn that answers a call, as its Jinja source writes them."""
    p = protocol.get("hermes", [tools.get("text_search")])
    segments = p.first_message(Prompts("<image>\n", "", "", "You are helpful."), "Who?", 1)
    whole = "".join("<image>" if s.kind == "image" else s.text for s in segments)
    assert whole == (
        "<|im_start|>system\nYou are helpful.\n\n# Tools\n\n"
        "You may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"type": "function", "function": {"name": "text_search", "description": "Search the web for a text query. Gives '
        'summaries of the pages found.", "parameters": {"type": "object", "properties": {"query": {"description": "what to '
        'search for", "minLength": 1, "type": "string"}}, "required": ["query"]}}}\n</tools>\n\n'
        "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML "
        "tags:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<image>\nWho?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "# Tools" not in protocol.get("hermes", list_tools=False).system(Prompts("<image>", "", "", "s"))


async def test_several_calls_of_a_turn_are_made_and_answered_in_order() -> None:
    crop = {"name": "crop", "arguments": {"bbox_2d": [0, 0, 500, 500], "image": 1}}
    engine = ScriptedEngine(TOKENIZER, [said(TEXT, crop) + IM_END, "<answer>x</answer>" + IM_END])
    section = {"crop": tools.settings_for("crop", {})}
    ctx = context(ScriptedSearch(), tokenizer=TOKENIZER, tools=section, name="hermes", max_prompt_tokens=9000)
    t = await run_trajectory(ctx, engine, await open_group(ctx, prompt()), seeds=Seeds(0, 0, 0, 0))
    t.check(ctx.pad_id)
    assert t.status is Status.ANSWERED and t.called == ["text_search", "crop"]
    assert [(c.kind, c.status) for c in t.tool_calls] == [("text", ToolStatus.OK), ("crop", ToolStatus.OK)]
    shown = TOKENIZER.decode(engine.sent[1][0]).split("</tool_call><|im_end|>")[-1]
    assert shown == (
        "\n<|im_start|>user\n<tool_response>\n[Text Search Results]1. (http://h/0) fact 0\n2. (http://h/1) fact 1\n\n"
        "</tool_response>\n<tool_response>\n<|vision_start|><|image_pad|><|vision_end|>\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("turn", "status"),
    [
        (said(TEXT, TEXT, TEXT), Status.OUT_OF_ROUNDS),  # three text searches where two are allowed: none is made
        (said({"name": "rm", "arguments": {}}), Status.INVALID),
        (said("{"), Status.INVALID),
    ],
)
async def test_calls_that_end_a_trajectory(turn: str, status: Status) -> None:
    search = ScriptedSearch()
    ctx = context(search, tokenizer=TOKENIZER, name="hermes", max_prompt_tokens=9000)
    t = await run_trajectory(
        ctx, ScriptedEngine(TOKENIZER, [turn + IM_END]), await open_group(ctx, prompt()), seeds=Seeds(0, 0, 0, 0)
    )
    assert t.status is status and search.calls == []
