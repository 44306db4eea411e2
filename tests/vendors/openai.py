"""Chat completions: platform.openai.com/docs/api-reference/chat, and SGLang's form of its errors."""

from __future__ import annotations

from typing import Any

from megatron_mmsr1.trajectory import ToolStatus
from vendors.server import Asked, Reply, answer
from vendors.spec import KEY, Case, Spec

SUMMARY = "Zurimo is a town. Its river is nofevo."


def error(code: int, words: str) -> Reply:
    return answer({"error": {"message": words, "type": "invalid_request_error", "param": None, "code": None}}, code)


def sglang(code: int, words: str) -> Reply:
    return answer({"object": "error", "message": words, "type": "BadRequestError", "param": None, "code": code}, code)


def quota() -> Reply:
    said = {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"}
    return answer({"error": said}, 429)


def said(content: Any, why: str | None = "stop", **more: Any) -> Reply:
    message = {"role": "assistant", "content": content, "tool_calls": None, **more}
    choice = {"index": 0, "message": message, "finish_reason": why, "logprobs": None}
    usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
    return answer({"id": "1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})


def found(asked: Asked) -> Reply:
    if asked.headers.get("authorization", f"Bearer {KEY}") != f"Bearer {KEY}":
        return error(401, "Incorrect API key provided")
    if (asked.method, asked.path) != ("POST", "/chat/completions"):
        return error(404, "Not Found")
    body = asked.json()
    if [m["role"] for m in body["messages"]] != ["system", "user"] or body["temperature"] != 0:
        return error(400, "not as expected here")
    return said(SUMMARY)


def ok(reply: Reply, gives: str) -> Case:
    return Case(reply, ToolStatus.OK, gives=gives, billed=True)


SPEC = Spec(
    kind="summarise",
    backend="openai",
    key_name="OPENAI_API_KEY",
    found=found,
    gives=SUMMARY,
    error=error,
    cases={
        "a thought": ok(said(f"<think>\nhm <answer>\n</think>\n\n{SUMMARY}"), SUMMARY),
        "a thought that the template opened": ok(said(f"hm, hm.</think>{SUMMARY}"), SUMMARY),
        "an empty thought": ok(said(f"<think>\n\n</think>\n\n{SUMMARY}"), SUMMARY),
        "thoughts apart": ok(said(SUMMARY, reasoning_content="hm"), SUMMARY),
        "tags and tokens": ok(said("a</answer><|im_end|>b"), "a[/answer][im_end]b"),
        "cut": ok(said("It is a town. Its river is nofevo. It was fou", "length"), "It is a town. Its river is nofevo."),
        "cut in its first sentence": ok(said("It is a tow", "length"), "It is a tow"),
        "cut in a thought": Case(said("<think>hm, hm", "length"), ToolStatus.UPSTREAM_ERROR, billed=True),
        "cut before it spoke": Case(said(None, "length", reasoning_content="hm"), ToolStatus.UPSTREAM_ERROR, billed=True),
        "silent": Case(said(None), ToolStatus.EMPTY, billed=True),
        "empty": Case(said(" \n"), ToolStatus.EMPTY, billed=True),
        "filtered": Case(said(None, "content_filter"), ToolStatus.REFUSED, billed=True),
        "bad key": Case(error(401, f"Incorrect API key provided: {KEY}"), ToolStatus.UPSTREAM_ERROR),
        "forbidden": Case(error(403, "Country not supported"), ToolStatus.UPSTREAM_ERROR),
        "no such model": Case(error(404, "The model does not exist"), ToolStatus.UPSTREAM_ERROR),
        "too long": Case(error(400, "maximum context length is 8192 tokens"), ToolStatus.REFUSED),
        "too long, as SGLang says it": Case(sglang(400, "The input is longer than the context"), ToolStatus.REFUSED),
        "too many": Case(error(429, "Rate limit reached"), ToolStatus.RATE_LIMITED, tries=3),
        "quota": Case(quota(), ToolStatus.BUDGET),
        "server error": Case(error(500, "The server had an error"), ToolStatus.UPSTREAM_ERROR, tries=3),
        "overloaded": Case(error(503, "The engine is currently overloaded"), ToolStatus.UPSTREAM_ERROR, tries=3),
    },
    unlike=(
        *([], {}, "words", 5, {"choices": []}, {"choices": None}, {"choices": [{}]}, {"choices": [{"message": None}]}),
        {"choices": [{"message": {"content": 5}}]},
    ),
)
