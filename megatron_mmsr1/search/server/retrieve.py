"""Search-R1's retrieval contract (`POST /retrieve`), which the community's agents speak."""

from __future__ import annotations

import asyncio
from typing import Any

from megatron_mmsr1.search.backends.interfaces import TextResult
from megatron_mmsr1.search.server.pipelines import TextSearch
from megatron_mmsr1.search.wire import RetrieveRequest

DEFAULT_TOPK = 3


async def retrieve(search: TextSearch, request: RetrieveRequest) -> dict[str, Any]:
    """{"result": one list a query}: documents {"id", "contents"}, each beside its score if `return_scores`.

    `contents` is the title in quotes, a newline, the text. The contract has no place for the failure of one query, so any
    SearchFailure is the failure of the request.
    """

    async def document(found: TextResult) -> dict[str, Any]:
        page = await search.page(found)
        row = {"id": found.url, "contents": f'"{page.title or found.title}"\n{page.text}'}
        return {"document": row, "score": found.score} if request.return_scores else row

    async def one(query: str) -> list[dict[str, Any]]:
        found = await search.results(query, request.topk or DEFAULT_TOPK)
        return [await document(r) for r in found] if search.local else await asyncio.gather(*map(document, found))

    return {"result": [await one(q) for q in request.queries]}
