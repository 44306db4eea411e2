"""The contract of a tool, for anyone's: `await check(tool, arguments)` in a test of your own. Raises AssertionError."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

from PIL import Image

from megatron_mmsr1 import protocol
from megatron_mmsr1.config import ProtocolConfig
from megatron_mmsr1.data.images import canonicalize
from megatron_mmsr1.protocol import ImageHit, TextHit
from megatron_mmsr1.search.wire import ImageReply, TextReply
from megatron_mmsr1.tools import ArgumentsError, Picture, Result, Scene, Tool
from megatron_mmsr1.trajectory import ToolStatus

# What a model may write instead of arguments. None of them may raise anything but ArgumentsError.
HOSTILE: tuple[Any, ...] = (
    {"": ""},
    {"query": None},
    {"bbox_2d": [10**30] * 4},
    {"bbox_2d": "0,0,1,1"},
    {"image": -1},
    {"x": {}},
)


async def check(tool: Tool, arguments: Mapping[str, Any]) -> None:
    """Every rule; `arguments` are some that the tool takes."""
    describes_itself(tool)
    reads_back(tool, arguments)
    refuses(tool)
    await gives_a_result(tool, arguments)


def describes_itself(tool: Tool) -> None:
    assert tool.name and tool.kind and tool.tag and tool.description, "name, kind, tag and description must say something"
    assert "+" not in tool.name and tool.name not in ("answer", "give_up", "invalid"), f"{tool.name} is no name for a tool"
    schema = json.loads(json.dumps(tool.schema()))
    assert schema["type"] == "object" and set(schema["required"]) <= set(schema["properties"])
    assert tool.price in ("search", "metered", "local"), f"price {tool.price!r}"
    assert tool.limit(ProtocolConfig()) >= 0


def reads_back(tool: Tool, arguments: Mapping[str, Any]) -> None:
    tool.read(arguments)
    for name in ("mmsearch", "hermes"):
        p = protocol.get(name, [tool])
        found = p.parse(p.write_call(protocol.call(tool.name, arguments)))
        assert isinstance(found, protocol.Call), f"{name} does not read the call back: {found}"
        assert tool.read(found.arguments) == tool.read(arguments), f"{name}: {found.arguments} is not {dict(arguments)}"


def refuses(tool: Tool) -> None:
    for wrong in HOSTILE:
        try:
            tool.read(wrong)
        except ArgumentsError:
            continue


async def gives_a_result(tool: Tool, arguments: Mapping[str, Any]) -> None:
    picture = await make_picture(_png())
    for search in (_Found(), None):
        scene = Scene("Who?", (picture, picture), picture.original, search, 2, "w0/0/p#0@1.1", make_picture)
        result = await tool.run(tool.read(arguments), scene)
        assert isinstance(result, Result), f"run must return a Result, not {type(result).__name__}"
        good = result.status in (ToolStatus.OK, ToolStatus.EMPTY)
        shown = sum(s.kind == "image" for s in result.body)
        assert not good or shown == len(result.pictures), f"the body shows {shown} of {len(result.pictures)} pictures"
        failed = Result(ToolStatus.UPSTREAM_ERROR, detail="down")
        assert any(s.text for s in tool.failure(failed)), "failure must tell the model something"
        assert all(s.kind != "image" for s in tool.failure(failed)), "a failure has no pictures"


async def make_picture(data: bytes, *, min_pixels: int | None = None, max_pixels: int | None = None) -> Picture:
    low, high = min_pixels or 56 * 56, max_pixels or 28 * 28 * 64
    return Picture(data, canonicalize(data, min_pixels=low, max_pixels=max(low, high)))


class _Found:
    async def text(self, query: str, k: int = 5, *, call: str = "") -> TextReply:
        return TextReply(status=ToolStatus.OK, hits=[TextHit("http://h", "a fact")][:k])

    async def image(self, data: bytes, k: int = 5, *, call: str = "") -> ImageReply:
        return ImageReply(status=ToolStatus.OK, hits=[ImageHit("a title", _png()), ImageHit("none", b"no picture")][:k])


def _png() -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((300, 200)).save(out, "PNG")
    return out.getvalue()
