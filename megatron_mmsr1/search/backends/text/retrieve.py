"""Any server that speaks Search-R1's retrieval contract, this project's own among them (`POST /retrieve`)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from megatron_mmsr1.config.search import TextSection
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.search.backends.interfaces import SearchFailure, TextResult, is_link, version, words
from megatron_mmsr1.search.backends.tools import Tools, endpoint
from megatron_mmsr1.search.upstream.secrets import Secret
from megatron_mmsr1.search.upstream.upstream import Ask, Upstream
from megatron_mmsr1.trajectory import ToolStatus

SNIPPET_CHARS = 200


class Options(Section):
    index: str = Field(default="", description="what the server searches, e.g. wiki-18-e5; a new name is a new cache")


def make(section: TextSection, tools: Tools) -> Retrieve:
    key = tools.optional_key(section, "RETRIEVE_API_KEY")
    options = tools.options(section, Options, "search.text")
    upstream = tools.upstream("retrieve", section, *([key] if key else []))
    return Retrieve(options, endpoint(section, "search.text", like="http://host:8000"), key, upstream)


class Retrieve:
    """Documents come whole, so no page is read again. A document whose id is no link gets the URL `retrieve:ID`."""

    name = "retrieve"
    local = False

    def __init__(self, options: Options, url: str, key: Secret | None, upstream: Upstream):
        self._url, self._key, self._upstream = url.removesuffix("/retrieve"), key, upstream
        self.version = version(1, index=options.index)

    async def search(self, query: str, k: int) -> Sequence[TextResult]:
        body = {"queries": [query], "topk": k, "return_scores": True}
        ask = Ask("POST", f"{self._url}/retrieve", json=body, bearer=self._key)
        return await self._upstream.call(ask, lambda said: _read(said, k), explain)

    async def close(self) -> None:
        await self._upstream.close()


def explain(code: int, said: Any) -> SearchFailure | None:
    """Our own server says in its errors what kind they are."""
    if code == 502:
        status = ToolStatus(said["status"])
        retry = 0.0 if status is ToolStatus.UPSTREAM_ERROR else None
        return SearchFailure(status, f"retrieve: {words(said['detail'])}", retry=retry)
    return None


def _read(said: Any, k: int) -> list[TextResult]:
    (rows,) = said["result"]  # one list for our one query
    return [_result(row, rank) for rank, row in enumerate(rows[:k], 1)]


def _result(row: dict[str, Any], rank: int) -> TextResult:
    document = row.get("document", row)
    contents = document["contents"]
    if not isinstance(contents, str):
        raise TypeError("a document's contents are no text")
    title, newline, text = contents.partition("\n")
    if not newline:
        title, text = "", contents
    name = words(document.get("id")) or hashlib.sha256(contents.encode()).hexdigest()[:16]
    try:
        score = float(row["score"])
    except (KeyError, TypeError, ValueError):  # a server that gives none, or a word for it
        score = 1 / rank
    url = name if is_link(name) else f"retrieve:{name}"
    return TextResult(url, title.strip().strip('"'), text[:SNIPPET_CHARS], score, text)
