"""Search for words: pages found on the web, each summarised for the query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from megatron_mmsr1.config import ProtocolConfig
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.protocol.results import SEARCH_FAILED, TEXT_RESULTS, text_observation
from megatron_mmsr1.protocol.segments import Segment, clean, text
from megatron_mmsr1.search.wire import TextReply
from megatron_mmsr1.tools.base import Result, Scene, Tool, ToolSettings
from megatron_mmsr1.trajectory import ToolStatus

QUERY_CHARS = 300  # of a question that is searched for as it is


class Arguments(Section):
    query: str = Field(min_length=1, description="what to search for")


class TextSearch(Tool):
    """Its limit is `protocol.text_searches`, its results a call `protocol.top_k`."""

    name = "text_search"
    kind = "text"
    description = "Search the web for a text query. Gives summaries of the pages found."
    price = "search"
    heading = "Searched results: "
    cites = True
    own_deadline = True  # the search client's; and a call that waits for search to come back waits under none
    Settings = ToolSettings
    Arguments = Arguments
    opens = True

    async def run(self, arguments: Arguments, scene: Scene) -> Result:
        if scene.search is None:
            reply = TextReply(status=ToolStatus.REFUSED, detail="this run has no search server")
        else:
            reply = await scene.search.text(arguments.query, scene.top_k, call=scene.call)
        return Result(
            reply.status, text_observation(reply.hits), [], tuple(reply.hits), len(reply.hits), reply.seconds, reply.cached,
            reply.backend, reply.detail, reply.degraded,
        )  # fmt: skip

    def limit(self, protocol: ProtocolConfig) -> int:
        return protocol.text_searches

    def failure(self, result: Result) -> list[Segment]:
        return [text(TEXT_RESULTS + SEARCH_FAILED)]

    def read_tag(self, body: str) -> Mapping[str, Any] | None:
        if not body.strip():
            raise ValueError("the text search has an empty query")
        return {"query": body.strip()}

    def required(self, question: str, has_picture: bool) -> Mapping[str, Any] | None:
        query = " ".join(clean(question).split())[:QUERY_CHARS]
        return {"query": query} if query else None


TOOL = TextSearch
