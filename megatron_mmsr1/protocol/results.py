"""What the searches find, and how a result list looks as text: the same in every protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_mmsr1.protocol.segments import IMAGE, Segment, data, text

IMAGE_RESULTS, TEXT_RESULTS = "[Image Search Results]", "[Text Search Results]"
# The misspelling is in the data that the released checkpoint was trained on.
SEARCH_FAILED = " There is an error encountered in performing search. Please reason with your own capaibilities."


@dataclass(slots=True, frozen=True)
class ImageHit:
    title: str
    image: bytes | None  # canonical PNG (`data.images.canonicalize`); None: the result has no picture
    url: str = ""


@dataclass(slots=True, frozen=True)
class TextHit:
    link: str
    summary: str
    title: str = ""


def image_observation(hits: Sequence[ImageHit]) -> list[Segment]:
    out = [text(IMAGE_RESULTS)]
    for n, hit in enumerate(hits, 1):
        out.append(text(f"{n}. image: "))
        out += [IMAGE] if hit.image is not None else []
        out += [text("\ntitle: "), data(hit.title), text("\n")]
    return out


def text_observation(hits: Sequence[TextHit]) -> list[Segment]:
    out = [text(TEXT_RESULTS)]
    for n, hit in enumerate(hits, 1):
        out += [text(f"{n}. ("), data(hit.link), text(") "), data(hit.summary), text("\n")]
    return out
