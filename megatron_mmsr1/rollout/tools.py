"""One tool call of a trajectory: the search, its typed outcome, and the observation that the model reads."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_mmsr1 import protocol
from megatron_mmsr1.data.images import CanonicalImage, ImageError
from megatron_mmsr1.protocol import ImageHit, ImageSearch, TextHit, TextSearch
from megatron_mmsr1.rollout.context import Context, Message
from megatron_mmsr1.search.replies import ImageReply, Reply, TextReply
from megatron_mmsr1.trajectory import ToolCall, ToolStatus


@dataclass(slots=True, frozen=True)
class Observation:
    call: ToolCall
    message: Message
    hits: tuple[ImageHit | TextHit, ...] = ()


async def call(
    context: Context, action: ImageSearch | TextSearch, question: str, picture: bytes | None, *, name: str = ""
) -> Observation:
    """Run `action` (an image search looks for `picture`) and render what came back. `name` is the call's own.

    OK and EMPTY are results, wrapped with the question and the follow-up prompt; every other status is the protocol's failure
    message. A hit whose picture cannot be decoded keeps its title and loses the picture.
    """
    if isinstance(action, TextSearch):
        reply = await _text(context, action.query, name)
        made = _record("text", action.query, reply, len(reply.hits))
        segments, images = protocol.text_observation(reply.hits), []
        hits = reply.hits
        follow_up = context.prompts.after_text
    else:
        reply = await _image(context, picture, name)
        hits, images = await _canonical(context, reply.hits)
        made = _record("image", "", reply, len(hits))
        segments, follow_up = protocol.image_observation(hits), context.prompts.after_image
    if made.status not in (ToolStatus.OK, ToolStatus.EMPTY):
        return Observation(made, context.message(protocol.failed_message(made.kind), []))
    return Observation(made, context.message(protocol.tool_message(segments, question, follow_up), images), tuple(hits))


async def _text(context: Context, query: str, name: str) -> TextReply:
    if context.search is None:
        return TextReply(status=ToolStatus.REFUSED, detail="this run has no search server")
    return await context.search.text(query, context.limits.top_k, call=name)


async def _image(context: Context, picture: bytes | None, name: str) -> ImageReply:
    if context.search is None:
        return ImageReply(status=ToolStatus.REFUSED, detail="this run has no search server")
    if picture is None:
        return ImageReply(status=ToolStatus.REFUSED, detail="the question came without a picture")
    return await context.search.image(picture, context.limits.top_k, call=name)


async def _canonical(context: Context, hits: list[ImageHit]) -> tuple[list[ImageHit], list[CanonicalImage]]:
    out: list[ImageHit] = []
    images: list[CanonicalImage] = []
    for hit in hits[: context.limits.top_k]:
        try:
            image = None if hit.image is None else await context.canonical(hit.image)
        except ImageError:
            image = None
        if image is not None:
            images.append(image)
        out.append(ImageHit(hit.title, None if image is None else image.png, hit.url))
    return out, images


def _record(kind: str, query: str, reply: Reply, results: int) -> ToolCall:
    return ToolCall(
        kind, query, reply.status, reply.seconds, results, reply.cached, reply.backend, reply.detail, reply.degraded
    )
