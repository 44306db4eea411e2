"""Search-R1's retrieval server: POST /retrieve, with and without the scores' wrapper."""

from __future__ import annotations

from typing import Any

from megatron_mmsr1.search.backends.interfaces import TextResult
from megatron_mmsr1.trajectory import ToolStatus
from vendors.server import Asked, Reply, answer
from vendors.spec import KEY, Case, Spec

DOCUMENTS: list[dict[str, Any]] = [
    {"id": "1614", "contents": '"Zurimo"\nZurimo is a town.\nIts river is nofevo.'},
    {"id": "https://towns.test/kadepi", "contents": '"Kadepi"\nKadepi is another.'},
    {"id": 7, "contents": "no title here"},
]
TEXT = "Zurimo is a town.\nIts river is nofevo."
GIVES = [
    TextResult("retrieve:1614", "Zurimo", TEXT, 0.9, TEXT),
    TextResult("https://towns.test/kadepi", "Kadepi", "Kadepi is another.", 0.8, "Kadepi is another."),
    TextResult("retrieve:7", "", "no title here", 1 / 3, "no title here"),
]
RANKED = [TextResult(r.url, r.title, r.snippet, 1 / n, r.text) for n, r in enumerate(GIVES, 1)]


def error(code: int, words: str) -> Reply:
    return answer({"detail": words}, code)


def ours(code: int, status: ToolStatus) -> Reply:
    """An error of this project's own server."""
    return answer({"status": status, "detail": "its words"}, code)


def found(asked: Asked) -> Reply:
    if asked.headers.get("authorization", f"Bearer {KEY}") != f"Bearer {KEY}":
        return error(401, "no")
    body = asked.json()
    if (asked.method, asked.path) != ("POST", "/retrieve") or len(body["queries"]) != 1:
        return error(422, "one query is expected here")
    scores: list[Any] = [0.9, "0.8", None]
    rows: list[Any] = [{"document": d, "score": s} for d, s in zip(DOCUMENTS, scores, strict=True)]
    return answer({"result": [rows if body.get("return_scores") else DOCUMENTS]})


SPEC = Spec(
    kind="text",
    backend="retrieve",
    key_name="RETRIEVE_API_KEY",
    found=found,
    gives=GIVES,
    error=error,
    cases={
        "empty": Case(answer({"result": [[]]}), ToolStatus.OK, gives=[], billed=True),
        "without scores": Case(answer({"result": [DOCUMENTS]}), ToolStatus.OK, gives=RANKED, billed=True),
        "a document without id": Case(
            answer({"result": [[{"contents": "T\nx"}]]}),
            ToolStatus.OK,
            gives=[TextResult("retrieve:f88a6430b8d9124a", "T", "x", 1.0, "x")],
            billed=True,
        ),
        "bad request": Case(answer({"detail": [{"loc": ["body"], "msg": "field required"}]}, 422), ToolStatus.REFUSED),
        "bad key": Case(error(401, f"not {KEY}"), ToolStatus.UPSTREAM_ERROR),
        "no such path": Case(error(404, "Not Found"), ToolStatus.UPSTREAM_ERROR),
        "too many": Case(error(429, "later"), ToolStatus.RATE_LIMITED, tries=3),
        "server error": Case(
            Reply(b"Internal Server Error", 500, {"content-type": "text/plain"}), ToolStatus.UPSTREAM_ERROR, 3
        ),
        "our own server's budget": Case(ours(502, ToolStatus.BUDGET), ToolStatus.BUDGET),
        "our own server's rate": Case(ours(502, ToolStatus.RATE_LIMITED), ToolStatus.RATE_LIMITED),
        "our own server's upstream": Case(ours(502, ToolStatus.UPSTREAM_ERROR), ToolStatus.UPSTREAM_ERROR, tries=3),
        "our own server's time-out": Case(ours(502, ToolStatus.TIMEOUT), ToolStatus.TIMEOUT, billed=True),
    },
    unlike=(
        *([], {}, "words", 5, {"result": []}, {"result": [[], []]}, {"result": [5]}, {"result": [[5]]}),
        *({"result": [[{}]]}, {"result": [[{"contents": None}]]}, {"result": [{"a": 1}]}),
    ),
)
