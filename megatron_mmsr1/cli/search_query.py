"""`mmsr1 search query`: one question to a search server, its answer as a table or as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

from megatron_mmsr1.errors import RunError

if TYPE_CHECKING:
    from megatron_mmsr1.search.wire import ImageReply, TextReply


def ask(url: str, *, text: str | None, image: bytes | None, k: int, as_json: bool = False) -> None:
    """Print the hits of one text or image search. Raises RunError if the server fails or cannot be reached."""
    reply = asyncio.run(_ask(url, text, image, k))
    if as_json:
        json.dump(reply.model_dump(mode="json"), sys.stdout, indent=1, ensure_ascii=False)
        print()
    if not reply.status.good:
        raise RunError(f"the search server at {url} answered {reply.status.value}: {reply.detail or 'no detail'}")
    if not as_json:
        _show(reply)


async def _ask(url: str, text: str | None, image: bytes | None, k: int) -> TextReply | ImageReply:
    from megatron_mmsr1.search.client import SearchClient

    async with SearchClient(url) as client:
        return await client.text(text or "", k) if image is None else await client.image(image, k)


def _show(reply: TextReply | ImageReply) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from megatron_mmsr1.protocol import ImageHit

    rows: list[tuple[str, str, str]] = []
    for hit in reply.hits:
        if isinstance(hit, ImageHit):
            rows.append((hit.title, hit.url, f"a picture of {len(hit.image)} bytes" if hit.image else "no picture"))
        else:
            rows.append((hit.title, hit.link, hit.summary))
    console = Console()
    if not rows:
        print("no results")
    elif not console.is_terminal:  # a table would break the lines that a program looks for
        for n, row in enumerate(rows, 1):
            print(f"{n}. {row[0]}  {row[1]}\n   {row[2]}")
    else:
        table = Table(show_lines=True)
        for name in ("", "title", "where", "what it says"):
            table.add_column(name)
        for n, row in enumerate(rows, 1):
            table.add_row(str(n), *(Text(cell, overflow="fold") for cell in row))  # Text: a page's words are not markup
        console.print(table)
    said = ", cached" if reply.cached else ""
    said += ", degraded" if reply.degraded else ""
    print(f"({reply.backend}, {reply.seconds * 1000:.0f} ms{said})")
