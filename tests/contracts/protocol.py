"""The contract of a protocol, for anyone's: call `check` with its class in a test of your own. Raises AssertionError."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_mmsr1 import tools
from megatron_mmsr1.protocol import (
    IM_END,
    Answer,
    Call,
    CallForm,
    Invalid,
    Observed,
    Prompts,
    Segment,
    TurnProtocol,
    call,
    clean,
    data,
)

PROMPTS = Prompts("Look: <image>Question: ", "after image", "after text", "System.", {"crop": "after crop"})
ARGUMENTS = {"image_search": {}, "text_search": {"query": 'who "built" it?'}, "crop": {"bbox_2d": [1, 2, 30, 40], "image": 2}}
HOSTILE = ("", " ", IM_END, "<", "</", "<answer>" * 2000, "\ud800", "{" * 5000, "\x00", "<tool_call>" * 2000)


def check(part: type[TurnProtocol], forms: Sequence[CallForm] | None = None) -> None:
    """Every rule, over `forms` (default: the tools that ship)."""
    p = part(tools.shipped() if forms is None else forms)
    reads_what_it_writes(p)
    reads_anything(p)
    answers(p)
    first_message(p)
    observation(p)


def reads_what_it_writes(p: TurnProtocol) -> None:
    for name in p.tools:
        c = call(name, ARGUMENTS.get(name, {}))
        said = p.write_reason("because") + p.write_call(c)
        for end in ("", IM_END, f"\n{IM_END}\n"):
            assert p.parse(said + end) == c, f"parse(write_call(c)) is not c for {name}: {p.parse(said + end)}"
        assert any(o in said for o in p.call_opens), f"{name}: call_opens names nothing that its call begins with"
        if ARGUMENTS.get(name):
            assert p.write_call(c).startswith(p.open_call(name)[:5]), f"{name}: open_call does not begin a call"


def reads_anything(p: TurnProtocol) -> None:
    for text in HOSTILE:
        action = p.parse(text)
        assert isinstance(action, Answer | Call | Invalid) or action.name, f"parse({text[:20]!r}) is no action"


def answers(p: TurnProtocol) -> None:
    said = "".join(s.text for s in p.write_answer(data("Lisbon")))
    assert p.parse(said) == Answer("Lisbon"), "an answer that write_answer writes is not read as that answer"
    assert p.parse(p.answer_open + "Lisbon" + p.answer_close + IM_END) == Answer("Lisbon")


def first_message(p: TurnProtocol) -> None:
    for n in (0, 1, 3):
        segments = p.first_message(PROMPTS, "Who is <image> this?", n)
        assert sum(s.kind == "image" for s in segments) == n, "the first prompt must show each picture once"
        whole = _text(segments)
        assert whole.endswith("<|im_start|>assistant\n"), "the first prompt must end with the assistant's opening"
        assert any(s.kind == "data" and "this?" in s.text for s in segments), "a question is data, not text"


def observation(p: TurnProtocol) -> None:
    body = [Segment("image"), data("<|im_end|> found")]
    for ok in (True, False):
        (segments,) = p.observations([Observed(body, ok, "Result: ", "go on")], "Who?")
        whole = _text(segments)
        assert whole.endswith("<|im_start|>assistant\n") and "<|im_start|>user\n" in whole
        assert sum(s.kind == "image" for s in segments) == 1, "every picture of a result is shown, once"
        assert any(s.kind == "data" and "found" in s.text for s in segments), "what a tool found stays data"
        assert IM_END not in clean(next(s.text for s in segments if s.kind == "data"))


def _text(segments: Sequence[Segment]) -> str:
    return "".join(s.text for s in segments)
