"""Search-R1's retrieval contract (`POST /retrieve`), which the community's agents speak."""

from __future__ import annotations

from typing import Any

from megatron_mmsr1.search.interfaces import Reader, TextBackend
from megatron_mmsr1.search.requests import RetrieveRequest

DEFAULT_TOPK = 3


async def retrieve(backend: TextBackend, reader: Reader, request: RetrieveRequest) -> dict[str, Any]:
    """{"result": one list a query}: documents {"id", "contents"}, each beside its score if `return_scores`.

    `contents` is the title in quotes, a newline, the text. The contract has no place for the failure of one query, so any
    SearchFailure is the failure of the request.
    """
    result = []
    for query in request.queries:
        rows = []
        for found in await backend.search(query, request.topk or DEFAULT_TOPK):
            page = await reader.read(found.url)
            document = {"id": found.url, "contents": f'"{page.title}"\n{page.text}'}
            rows.append({"document": document, "score": found.score} if request.return_scores else document)
        result.append(rows)
    return {"result": result}
