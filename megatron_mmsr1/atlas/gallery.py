"""The pictures of the cold start: a bounded pool of emblems, each in a few views, drawn when first shown.

Names and facts are drawn anew for every demonstration, pictures are shared, so that their PNGs and features stay few.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from megatron_mmsr1.atlas.canvas import CORNERS, draw_canvas
from megatron_mmsr1.atlas.picture import Emblem, draw, png, random_emblem, random_view
from megatron_mmsr1.atlas.spec import AtlasSpec
from megatron_mmsr1.atlas.world import Entity
from megatron_mmsr1.data.images import CanonicalImage, canonicalize


@dataclass(frozen=True)
class Shown:
    """A picture as a question brings it (`original`, a PNG) and as the model sees it (`image`). `corner`: where a small emblem
    lies; -1 where the emblem fills the picture."""

    original: bytes
    image: CanonicalImage
    corner: int = -1


class Picture:
    """An emblem: the view that image search knows, views that questions show, and small ones on a canvas."""

    def __init__(self, emblem: Emblem, key: str, spec: AtlasSpec) -> None:
        self.emblem, self._key, self._spec = emblem, key, spec

    @cached_property
    def indexed(self) -> CanonicalImage:
        return self._large(0).image

    @cached_property
    def asked(self) -> tuple[Shown, ...]:
        return self._large(1), self._large(2)

    @cached_property
    def small(self) -> tuple[Shown, ...]:
        """Two canvases with the emblem in two different corners."""
        rng = random.Random(f"{self._key}/small")
        return tuple(self._small(corner, rng) for corner in rng.sample(range(len(CORNERS)), 2))

    def _large(self, number: int) -> Shown:
        rng = random.Random(f"{self._key}/{number}")
        data = png(draw(self.emblem, random_view(rng, self._spec.views), self._spec.image_size))
        return Shown(data, self.as_seen(data))

    def _small(self, corner: int, rng: random.Random) -> Shown:
        data = png(draw_canvas(self.emblem, random_view(rng, self._spec.views), corner, self._spec.canvas_size))
        return Shown(data, self.as_seen(data), corner)

    def as_seen(self, data: bytes) -> CanonicalImage:
        """In the size that the model gets."""
        pixels = self._spec.image_size**2
        return canonicalize(data, min_pixels=pixels, max_pixels=pixels)


class Gallery:
    """The pool. The same seed and key give the same picture."""

    def __init__(self, spec: AtlasSpec, size: int, seed: int) -> None:
        self._spec, self._size, self._seed = spec, size, seed
        self._drawn: dict[str, Picture] = {}

    def pick(self, rng: random.Random) -> Picture:
        return self._picture(f"pool-{rng.randrange(self._size)}", None)

    def of(self, e: Entity) -> Picture:
        """The picture of a known entity."""
        return self._picture(e.id, e.emblem)

    def _picture(self, name: str, emblem: Emblem | None) -> Picture:
        if name not in self._drawn:
            key = f"atlas/gallery/{self._seed}/{name}"
            self._drawn[name] = Picture(emblem or random_emblem(random.Random(key)), key, self._spec)
        return self._drawn[name]
