"""The size that an image processor gives a picture."""

from __future__ import annotations

import math

from megatron_mmsr1.data.decode import ImageError

MAX_ASPECT = 200  # the vision towers' own limit


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int, max_aspect: float = MAX_ASPECT
) -> tuple[int, int]:
    """(height, width) that Qwen2-VL gives an image: multiples of `factor`, pixel count within the limits, aspect kept.

    The rule of `transformers.models.qwen2_vl.image_processing_qwen2_vl.smart_resize`. ImageError for a side of zero or
    an aspect above `max_aspect`.
    """
    if min(height, width) < 1:
        raise ImageError(f"an image of {width}x{height} pixels has no area")
    if max(height, width) / min(height, width) > max_aspect:
        raise ImageError(f"aspect of {width}x{height} is above {max_aspect:g}")
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if h * w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        h = max(factor, math.floor(height / shrink / factor) * factor)
        w = max(factor, math.floor(width / shrink / factor) * factor)
    elif h * w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        h = math.ceil(height * grow / factor) * factor
        w = math.ceil(width * grow / factor) * factor
    return h, w
