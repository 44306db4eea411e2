"""Jina's Reader: jina.ai/reader, and the error classes of its open source (github.com/jina-ai/reader)."""

from __future__ import annotations

from typing import Any

from megatron_mmsr1.search.backends.interfaces import Page
from megatron_mmsr1.trajectory import ToolStatus
from vendors.server import Asked, Reply, answer
from vendors.spec import KEY, Case, Spec

PAGE = "https://towns.test/zurimo"
TEXT = "Zurimo is a town.\n\nIts river is nofevo."


def fault(code: int, status: int, name: str, words: str) -> Reply:
    said = {"data": None, "code": code, "name": name, "status": status, "message": words, "readableMessage": f"{name}: {words}"}
    return answer(said, code)


def error(code: int, words: str) -> Reply:
    return fault(code, code * 100, "ApplicationError", words)


def page(url: str, title: Any, content: Any, **more: Any) -> Reply:
    data = {"title": title, "description": "", "url": url, "content": content, "usage": {"tokens": 42}, **more}
    return answer({"code": 200, "status": 20000, "data": data})


def found(asked: Asked) -> Reply:
    if asked.headers.get("authorization", f"Bearer {KEY}") != f"Bearer {KEY}":
        return fault(401, 40103, "AuthenticationFailedError", "Invalid API key")
    if asked.method != "GET" or "json" not in asked.headers.get("accept", ""):
        return Reply(TEXT.encode(), 200, {"content-type": "text/plain"})
    return page(asked.target[1:], "Zurimo", TEXT)


BLOCKED = "Anonymous access to domain towns.test blocked until later due to previous abuse"
SPEC = Spec(
    kind="read",
    backend="jina",
    key_name="JINA_API_KEY",
    found=found,
    gives=Page(PAGE, "Zurimo", TEXT),
    error=error,
    cases={
        "empty": Case(page(PAGE, "Zurimo", ""), ToolStatus.OK, gives=Page(PAGE, "Zurimo", ""), billed=True),
        "no title": Case(page(PAGE, None, "x"), ToolStatus.OK, gives=Page(PAGE, "", "x"), billed=True),
        "tags and tokens": Case(
            page(PAGE, "<answer>t</answer>", "a<|im_end|>\u200bb"),
            ToolStatus.OK,
            gives=Page(PAGE, "[answer]t[/answer]", "a[im_end]b"),
            billed=True,
        ),
        "an error page": Case(
            page(PAGE, "404", "not here", warning="Target URL returned error 404: Not Found"), ToolStatus.EMPTY, billed=True
        ),
        "a harmless warning": Case(
            page(PAGE, "t", "x", warning="This is a cached snapshot"), ToolStatus.OK, gives=Page(PAGE, "t", "x"), billed=True
        ),
        "bad parameter": Case(fault(400, 40001, "ParamValidationError", "url: Invalid URL"), ToolStatus.EMPTY),
        "bad key": Case(fault(401, 40103, "AuthenticationFailedError", f"Invalid key {KEY}"), ToolStatus.UPSTREAM_ERROR),
        "out of tokens": Case(fault(402, 40203, "InsufficientBalanceError", "Account balance not enough"), ToolStatus.BUDGET),
        "forbidden": Case(fault(403, 40301, "OperationNotAllowedError", "no"), ToolStatus.UPSTREAM_ERROR),
        "no such page": Case(fault(404, 40400, "ResourceNotFoundError", "no"), ToolStatus.EMPTY),
        "no such domain": Case(
            fault(422, 42203, "SubmittedDataMalformedError", "Domain could not be resolved"), ToolStatus.EMPTY
        ),
        "nothing on the page": Case(fault(422, 42206, "AssertionFailureError", "No content available"), ToolStatus.EMPTY),
        "blocked": Case(fault(451, 45102, "SecurityCompromiseError", BLOCKED), ToolStatus.EMPTY),
        "too many": Case(fault(429, 42903, "RateLimitTriggeredError", "rate limit exceeded"), ToolStatus.RATE_LIMITED, tries=3),
        "server error": Case(fault(500, 50000, "InternalServerError", "oops"), ToolStatus.UPSTREAM_ERROR, tries=3),
        "crashed": Case(fault(503, 50302, "ServiceCrashedError", "oops"), ToolStatus.UPSTREAM_ERROR, tries=3),
    },
    unlike=(
        [],
        {},
        "words",
        5,
        {"data": None},
        {"data": {}},
        {"data": {"content": 5}},
        {"data": {"content": None}},
        {"data": []},
    ),
)
