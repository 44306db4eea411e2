"""`mmsr1 search query`: one question to a search server, its answer as text."""

from __future__ import annotations

import asyncio

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.trajectory import ToolStatus


def ask(url: str, *, text: str | None, image: bytes | None, k: int) -> None:
    """Print the hits of one text or image search. Raises RunError if the server fails or cannot be reached."""
    asyncio.run(_ask(url, text, image, k))


async def _ask(url: str, text: str | None, image: bytes | None, k: int) -> None:
    from megatron_mmsr1.search.client import SearchClient

    client = SearchClient(url)
    try:
        if image is not None:
            reply = await client.image(image, k)
            lines = [f"{hit.title}  {hit.url}" for hit in reply.hits]
        else:
            reply = await client.text(text or "", k)
            lines = [f"{hit.link}\n   {hit.summary}" for hit in reply.hits]
    finally:
        await client.close()
    if reply.status not in (ToolStatus.OK, ToolStatus.EMPTY):
        raise RunError(f"the search server at {url} answered {reply.status.value}: {reply.detail or 'no detail'}")
    for n, line in enumerate(lines, 1):
        print(f"{n}. {line}")
    if not lines:
        print("no results")
    print(f"({reply.backend}, {reply.seconds * 1000:.0f} ms{', cached' if reply.cached else ''})")
