"""Look closer: a box of a picture that the conversation holds, cut from its original pixels and enlarged. No network.

What DeepEyes (arXiv 2505.14362) trains with as its zoom-in tool. The picture's original bytes are cut, not the smaller form
that the model saw, so a crop shows detail that was lost.
"""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.data.decode import decode
from megatron_mmsr1.data.images import ImageError
from megatron_mmsr1.protocol.results import ImageHit
from megatron_mmsr1.protocol.segments import IMAGE, Segment, text
from megatron_mmsr1.tools.base import Picture, Result, Scene, Tool, ToolSettings
from megatron_mmsr1.trajectory import ToolStatus
from megatron_mmsr1.untyped import is_list

NO_BOX = "[Cropped Picture] The box does not lie inside the picture."
WHOLE = 1000  # a normalised side
INLINE_BYTES = 32 * 1024  # a larger picture is decoded in a thread
_TAG = re.compile(r"\s*(?:(\d{1,6})\s*:)?\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*")


class Settings(ToolSettings):
    unit: Literal["normalised", "pixels"] = Field(
        default="normalised", description="of a box: 0..1000 over the picture, or pixels of the picture as the model sees it"
    )
    min_pixels: int | None = Field(
        default=None, gt=0, description="a crop is enlarged to this many pixels; default: model.min_pixels"
    )
    max_pixels: int | None = Field(
        default=None, gt=0, description="a crop is shrunk to this many pixels; default: model.max_pixels"
    )


class Arguments(Section):
    bbox_2d: list[int] = Field(min_length=4, max_length=4, description="the box: [x1, y1, x2, y2]")
    image: int = Field(default=1, description="which picture, counted from 1 over all pictures seen so far")


class Crop(Tool):
    """A box that does not lie inside its picture, or a picture that there is not, is the model's mistake: REFUSED."""

    name = "crop"
    description = (
        "Cut a box out of a picture that was seen before and look at it enlarged. bbox_2d: [x1, y1, x2, y2], the top left and "
        "the bottom right corner."
    )
    heading = "Cropped picture: "
    Settings = Settings
    Arguments = Arguments

    async def run(self, arguments: Arguments, scene: Scene) -> Result:
        if not 1 <= arguments.image <= len(scene.pictures):
            return Result.refused(f"there is no picture {arguments.image}: {len(scene.pictures)} were seen")
        source = scene.pictures[arguments.image - 1]
        try:
            part = await self._cut(source, arguments.bbox_2d)
            s = self.settings
            picture = await scene.make_picture(part, min_pixels=s.min_pixels, max_pixels=s.max_pixels)
        except ImageError as e:  # no box, or a sliver that no picture may be
            return Result.refused(str(e))
        hit = ImageHit(f"crop of picture {arguments.image}", picture.image.png)
        return Result(ToolStatus.OK, [IMAGE], [picture], (hit,), results=1, backend="crop")

    async def _cut(self, source: Picture, box: list[int]) -> bytes:
        whole = (WHOLE, WHOLE) if self.settings.unit == "normalised" else source.image.size
        if len(source.original) <= INLINE_BYTES:
            return cut(source.original, box, whole)
        return await asyncio.to_thread(cut, source.original, box, whole)

    def failure(self, result: Result) -> list[Segment]:
        return [text(NO_BOX)]

    def read_tag(self, body: str) -> Mapping[str, Any] | None:
        """`x1,y1,x2,y2` or `N:x1,y1,x2,y2`; anything else is a call with no box, which the model is told."""
        found = _TAG.fullmatch(body)
        if found is None:
            return {"bbox_2d": []}
        number, *box = found.groups()
        return {"bbox_2d": [int(v) for v in box]} | ({} if number is None else {"image": int(number)})

    def write_tag(self, arguments: Mapping[str, Any]) -> str:
        box, number = arguments.get("bbox_2d"), arguments.get("image")
        sides = ",".join(map(str, box)) if is_list(box) else ""
        return sides if number is None else f"{number}:{sides}"


def cut(data: bytes, box: list[int], whole: tuple[int, int]) -> bytes:
    """The part of a picture inside `box` (x1, y1, x2, y2), whose corners count in a picture of `whole` (width, height): PNG.

    Every pixel that the box touches is in it. Raises ImageError unless 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height, and
    for bytes that are no picture.
    """
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= whole[0] and 0 <= y1 < y2 <= whole[1]):
        raise ImageError(f"the box {box} does not lie inside a picture of {whole[0]}x{whole[1]}")
    image = decode(data)
    # In whole numbers: 150 * 0.56 is a little more than 84, and its ceiling a pixel too far.
    left, top = x1 * image.width // whole[0], y1 * image.height // whole[1]
    right, bottom = -(-x2 * image.width // whole[0]), -(-y2 * image.height // whole[1])
    out = io.BytesIO()
    image.crop((left, top, right, bottom)).save(out, "PNG", compress_level=1)
    return out.getvalue()


TOOL = Crop
