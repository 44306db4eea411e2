"""Search for pictures that look like the question's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_mmsr1.config import ProtocolConfig
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.data.images import ImageError
from megatron_mmsr1.protocol.results import IMAGE_RESULTS, SEARCH_FAILED, ImageHit, image_observation
from megatron_mmsr1.protocol.segments import Segment, text
from megatron_mmsr1.search.wire import ImageReply
from megatron_mmsr1.tools.base import Picture, Result, Scene, Tool, ToolSettings
from megatron_mmsr1.trajectory import ToolStatus


class Arguments(Section):
    pass


class ImageSearch(Tool):
    """Its limit is `protocol.image_searches`, its results a call `protocol.top_k`."""

    name = "image_search"
    kind = "image"
    tag = "search"
    description = "Search the web for pictures that look like the picture of the question. Gives pictures with their titles."
    price = "search"
    heading = "Searched results: "
    cites = True
    own_deadline = True  # the search client's; and a call that waits for search to come back waits under none
    Settings = ToolSettings
    Arguments = Arguments

    async def run(self, arguments: Arguments, scene: Scene) -> Result:
        """A hit whose picture cannot be decoded keeps its title and loses the picture."""
        reply = await _ask(scene)
        hits, pictures = await _seen(scene, reply.hits)
        return Result(
            reply.status, image_observation(hits), pictures, tuple(hits), len(hits), reply.seconds, reply.cached, reply.backend,
            reply.detail, reply.degraded,
        )  # fmt: skip

    def limit(self, protocol: ProtocolConfig) -> int:
        return protocol.image_searches

    def failure(self, result: Result) -> list[Segment]:
        return [text(IMAGE_RESULTS + SEARCH_FAILED)]

    def read_tag(self, body: str) -> Mapping[str, Any] | None:
        return {} if body == "<img>" else None

    def write_tag(self, arguments: Mapping[str, Any]) -> str:
        return "<img>"

    def required(self, question: str, has_picture: bool) -> Mapping[str, Any] | None:
        return {} if has_picture else None


async def _ask(scene: Scene) -> ImageReply:
    if scene.search is None:
        return ImageReply(status=ToolStatus.REFUSED, detail="this run has no search server")
    if scene.picture is None:
        return ImageReply(status=ToolStatus.REFUSED, detail="the question came without a picture")
    return await scene.search.image(scene.picture, scene.top_k, call=scene.call)


async def _seen(scene: Scene, hits: list[ImageHit]) -> tuple[list[ImageHit], list[Picture]]:
    out: list[ImageHit] = []
    pictures: list[Picture] = []
    for hit in hits[: scene.top_k]:
        try:
            picture = None if hit.image is None else await scene.make_picture(hit.image)
        except ImageError:
            picture = None
        pictures += [] if picture is None else [picture]
        out.append(ImageHit(hit.title, None if picture is None else picture.image.png, hit.url))
    return out, pictures


TOOL = ImageSearch
