"""The tool-call JSON of Qwen2.5 and the Hermes family: tools are listed in the system prompt, a call is
`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, its result a user turn of `<tool_response>...</tool_response>`.

The wording and white space of the list of tools and of the result are those of Qwen2.5's chat template, to the byte, so that
checkpoints trained with it see what they know.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.protocol.actions import Action, Answer, Call, Invalid, call, last_answer, strip_end
from megatron_mmsr1.protocol.base import CallForm, Observed, TurnProtocol
from megatron_mmsr1.protocol.prompts import Prompts
from megatron_mmsr1.protocol.segments import IM_END, IM_START, Segment, text
from megatron_mmsr1.untyped import is_dict, is_mapping

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{tools}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
    '<tool_call>\n{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)


class Settings(Section):
    name: str = "hermes"
    list_tools: bool = Field(default=True, description="tell the model of its tools in the system prompt")


class Hermes(TurnProtocol):
    name = "hermes"
    Settings = Settings
    silent = ("<think>", "</think>", "<reason>", "</reason>", CLOSE, IM_END, "<|endoftext|>")
    plain_answers = True

    def parse(self, text: str) -> Action:
        """Any `<tool_call>` after the thinking makes the turn a call; several are made in order. All must be readable, else the
        turn is invalid and says which is not. Without one, the last `<answer>` counts, else all that is said is the answer.

        Reasoning up to the last `</think>` is skipped, whatever it quotes. `arguments` may be an object or, as some models
        write it, that object as a string.
        """
        body = strip_end(text)
        said = body[body.rfind("</think>") + len("</think>") :] if "</think>" in body else body
        if OPEN in said:
            return _calls(said)
        answer = last_answer(said)
        if answer is not None:
            return Answer(answer)
        plain = said.strip()
        return Answer(plain) if plain and not plain.startswith("<think>") else Invalid("the turn says nothing")

    def write_call(self, call: Call) -> str:
        return "\n".join(f"{OPEN}\n{_json({'name': c.name, 'arguments': c.arguments})}\n{CLOSE}" for c in call.calls)

    def open_call(self, tool: str) -> str:
        first = next(iter(self.tools[tool].schema()["properties"]))
        return f'{OPEN}\n{{"name": {_json(tool)}, "arguments": {{{_json(first)}: "'

    def write_reason(self, reason: str) -> str:
        return f"{reason}\n"

    def write_answer(self, answer: Segment) -> list[Segment]:
        return [answer]

    def system(self, prompts: Prompts) -> str:
        if not self.settings.list_tools or not self.tools:
            return prompts.system
        listed = "\n".join(_json(signature(t)) for t in self.tools.values())
        return f"{prompts.system}\n\n{_TOOLS.format(tools=listed)}" if prompts.system else _TOOLS.format(tools=listed)

    def observations(self, observed: Sequence[Observed], question: str) -> list[list[Segment]]:
        """One user turn with a `<tool_response>` a call, as Qwen2.5's template has it; the prompt set's text for the last tool
        follows, where there is one."""
        out: list[list[Segment]] = []
        last = len(observed) - 1
        for n, o in enumerate(observed):
            before = f"\n{IM_START}user\n" if n == 0 else "\n"
            after = "\n</tool_response>"
            if n == last:
                after += (f"\n{o.follow_up}" if o.follow_up else "") + f"{IM_END}\n{IM_START}assistant\n"
            out.append([text(f"{before}<tool_response>\n"), *o.body, text(after)])
        return out

    @property
    def call_opens(self) -> tuple[str, ...]:
        return (OPEN,)

    @property
    def tags(self) -> tuple[str, ...]:
        return ()


def signature(tool: CallForm) -> dict[str, Any]:
    """A tool as function calling describes it."""
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": tool.schema()},
    }


def _json(value: Any) -> str:
    # As Jinja's tojson of the chat template: other scripts stay as they are.
    return json.dumps(value, ensure_ascii=False)


def _calls(body: str) -> Call | Invalid:
    calls: list[Call] = []
    at = body.find(OPEN)
    while at >= 0:
        found, at = _one(body, at + len(OPEN), len(calls) + 1)
        if isinstance(found, Invalid):
            return found
        calls.append(found)
        at = body.find(OPEN, at)
    first, *others = calls
    return Call(first.name, first.arguments, tuple(others)) if others else first


def _one(body: str, at: int, n: int) -> tuple[Call | Invalid, int]:
    """The call whose JSON begins at `at`, and where it ends. The JSON itself says where it ends: a string of it may hold the
    closing tag."""
    while at < len(body) and body[at].isspace():
        at += 1
    try:
        value, end = _DECODER.raw_decode(body, at)
    except (ValueError, RecursionError) as e:
        return Invalid(f"tool call {n} is no JSON: {type(e).__name__} {str(e)[:80]}"), at
    while end < len(body) and body[end].isspace():
        end += 1
    if not body.startswith(CLOSE, end):
        return Invalid(f"tool call {n} does not end with {CLOSE} after its JSON"), at
    return _read(value, n), end + len(CLOSE)


def _read(value: Any, n: int) -> Call | Invalid:
    if not is_dict(value) or not isinstance(value.get("name"), str) or not value["name"]:
        return Invalid(f'tool call {n} is no object with a "name"')
    arguments = value.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = _DECODER.decode(arguments)
        except (ValueError, RecursionError):
            return Invalid(f'tool call {n}: its "arguments" are a string that is no JSON')
    if not is_mapping(arguments):
        return Invalid(f'tool call {n}: its "arguments" are no object')
    return call(value["name"], arguments)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


# Not strict: a model may write a line break inside a string.
_DECODER = json.JSONDecoder(strict=False, parse_constant=_no_constant)

PROTOCOL = Hermes
