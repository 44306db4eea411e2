"""One question of the cold start with simulated tools: what each would find, in the form that the real one gives.

Everything about an unknown entity is thrown away afterwards, so that the one thing to learn is to copy from what was found.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from megatron_mmsr1.atlas.canvas import CORNERS, corner_box
from megatron_mmsr1.atlas.gallery import Gallery, Picture, Shown
from megatron_mmsr1.atlas.names import draw_name
from megatron_mmsr1.atlas.pages import NOISE, fact_sentence, sentences
from megatron_mmsr1.atlas.questions import Question, draw_question
from megatron_mmsr1.atlas.spec import SEARCH_FREE, AtlasSpec
from megatron_mmsr1.atlas.turns import query
from megatron_mmsr1.atlas.world import ATTRIBUTES, Entity, draw_entity, known_entities
from megatron_mmsr1.data.images import CanonicalImage
from megatron_mmsr1.protocol import ImageHit, TextHit
from megatron_mmsr1.tools.crop import WHOLE, cut


@dataclass(slots=True)
class Simulation:
    """A question with its answerer's state: whether the name of the place, and the fact that answers, have been seen."""

    question: Question
    entity: Entity
    picture: Picture
    shown: Shown
    rng: random.Random
    gallery: Gallery
    taken: set[str]
    name_known: bool
    fact_known: bool
    long_summaries: float = 0.25

    @property
    def query(self) -> str:
        return query(self.question, name_known=self.name_known)

    def crop(self) -> tuple[int, CanonicalImage]:
        """A corner to cut out of the picture, and what the tool returns: the emblem where it is small, else any corner."""
        corner = self.shown.corner
        self.fact_known |= corner >= 0
        if corner < 0:
            corner = self.rng.randrange(len(CORNERS))
        return corner, self.picture.as_seen(cut(self.shown.original, list(corner_box(corner)), (WHOLE, WHOLE)))

    def image_hits(self) -> list[ImageHit]:
        """The place itself, then something that looks less like it."""
        self.name_known = True
        self.fact_known |= self.question.kind == "image"
        other = draw_name(self.rng, self.taken, world=False)
        return [
            ImageHit(self.entity.name, self.picture.indexed.png, self.entity.url),
            ImageHit(other, self.gallery.pick(self.rng).indexed.png, f"http://atlas.test/{other}"),
        ]

    def text_hits(self) -> list[TextHit]:
        """What `query` finds: with the name in it, the place's page and one that shares a word; else two that share a word."""
        if not self.name_known:
            return [self._other(), self._other()]
        self.fact_known |= self.question.attribute in ATTRIBUTES
        hits = [self._hit(self.entity, self.question.attribute), self._other()]
        # Search ranks the right page first. Now and then it does not here, so that the name is read, not the rank.
        return hits if self.rng.random() < 0.75 else hits[::-1]

    def _other(self) -> TextHit:
        """A page that shares a word with the query: with a name in it another place's same fact or a neighbour's page, without
        one mostly noise."""
        other = draw_entity(self.rng, self.taken)
        if self.rng.random() < (0.1 if self.name_known else 0.8):
            noise = self.rng.choice(NOISE).format(name=other.name)
            return TextHit(f"http://atlas.test/noise-{self.rng.randrange(1000)}", noise, "a place")
        attribute = self.question.attribute
        if attribute not in ATTRIBUTES or self.rng.random() < 0.3:
            attribute = "neighbour"
            if self.name_known:
                other.facts[attribute] = self.entity.name
        return self._hit(other, attribute)

    def _hit(self, e: Entity, attribute: str) -> TextHit:
        """A summary of the page's one best sentence, sometimes with another of its sentences after it or before."""
        best = fact_sentence(e.name, attribute, e.facts[attribute]) if attribute in e.facts else sentences(e)[0]
        parts = [best]
        if self.rng.random() < self.long_summaries:
            parts.append(self.rng.choice([s for s in sentences(e) if s != best]))
            self.rng.shuffle(parts)
        return TextHit(e.url, " ".join(parts), e.name)


class Simulator:
    """Draws simulations: known entities are the world's, all others exist in one of them only."""

    def __init__(self, spec: AtlasSpec, gallery: Gallery, long_summaries: float) -> None:
        self._known = known_entities(spec.known)
        self._names = {n for e in self._known for n in (e.name, *e.facts.values())}
        self.gallery = gallery
        self._long = long_summaries

    def draw(self, rng: random.Random, kind: str) -> Simulation:
        taken = set(self._names)
        if kind == "known":
            entity = rng.choice(self._known)
            picture = self.gallery.of(entity)
        else:
            entity = draw_entity(rng, taken)
            picture = self.gallery.pick(rng)
            entity.emblem = picture.emblem
        shown = rng.choice(picture.small if kind == "crop" else picture.asked)
        q = replace(draw_question(rng, entity, kind, "all"), corner=shown.corner)
        free = kind in SEARCH_FREE
        named = kind in ("known", "text")
        return Simulation(q, entity, picture, shown, rng, self.gallery, taken, named, free, self._long)

    def places(self, rng: random.Random, n: int) -> Iterable[Entity]:
        taken = set(self._names)
        return [draw_entity(rng, taken) for _ in range(n)]
