"""The entities of a world: names, emblems, facts and relations, all from the spec's seed."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from megatron_mmsr1.atlas.names import draw_name
from megatron_mmsr1.atlas.picture import COLOURS, Emblem, random_emblem
from megatron_mmsr1.atlas.spec import AtlasSpec

ATTRIBUTES = ("founded", "capital", "river", "ruler", "neighbour")
PLACES = ("town", "port", "valley", "forest")


@dataclass(slots=True)
class Entity:
    """A place. `facts` maps each of ATTRIBUTES to what a question on it wants; `neighbour` is another entity's name."""

    id: str
    name: str
    place: str
    emblem: Emblem
    facts: dict[str, str]
    slug: str = ""  # the page's address; the name, but for a homonym
    homonym: bool = False
    tags: list[str] = field(default_factory=list)  # extra pages: stale, contradictory, injected

    @property
    def url(self) -> str:
        return f"http://atlas.test/{self.slug or self.name}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"url": self.url}


@dataclass(slots=True)
class World:
    spec: AtlasSpec
    known: list[Entity]
    train: list[Entity]
    heldout: list[Entity]

    @property
    def entities(self) -> list[Entity]:
        return self.known + self.train + self.heldout

    def split(self, name: str) -> list[Entity]:
        return {"train": self.train, "heldout": self.heldout}[name]


def draw_entity(rng: random.Random, taken: set[str], *, id: str = "", world: bool = False) -> Entity:
    """An entity with fresh names. `taken` grows by them. The neighbour is a name of its own until a world relinks it."""
    name = draw_name(rng, taken, world=world)
    facts = {
        "founded": str(rng.randint(1000, 1999)),
        **{a: draw_name(rng, taken, world=world) for a in ("capital", "river", "ruler", "neighbour")},
    }
    return Entity(id, name, rng.choice(PLACES), random_emblem(rng), facts)


def known_entities(n: int) -> list[Entity]:
    """The well-known entities: the same in every world, whatever its seed, as a cold-started checkpoint has learnt them."""
    rng, taken = random.Random("atlas/known"), set()
    known = [draw_entity(rng, taken, id=f"known-{i}", world=True) for i in range(64)]
    for e, other in zip(known, known[1:] + known[:1], strict=True):
        e.facts["neighbour"] = other.name
    return known[:n]


def make_world(spec: AtlasSpec) -> World:
    rng = random.Random(f"atlas/world/{spec.seed}")
    # Names of well-known entities are taken in every world, however many of them this one has.
    taken = {n for e in known_entities(64) for n in (e.name, *e.facts.values())}
    known = known_entities(spec.known)
    seen = [e.emblem for e in known]
    unknown: list[Entity] = []
    while len(unknown) < spec.entities:
        e = draw_entity(rng, taken, id=f"place-{len(unknown)}", world=True)
        while any(_alike(e.emblem, other) for other in seen):
            e.emblem = random_emblem(rng)
        seen.append(e.emblem)
        unknown.append(e)
    world = World(spec, known, unknown[: -spec.heldout_entities], unknown[-spec.heldout_entities :])
    for split in (world.train, world.heldout):
        # A ring, shuffled: everyone has exactly one neighbour, never itself, and never one of the other split.
        order = rng.sample(split, len(split))
        for e, other in zip(order, order[1:] + order[:1], strict=True):
            e.facts["neighbour"] = other.name
        _trouble(rng, spec, split, len(split) / spec.entities)
    return world


def _alike(a: Emblem, b: Emblem) -> bool:
    """Too close for a clean image search: the same field and charge, and at least two dots in common."""
    return (a.field, a.charge, a.shape) == (b.field, b.charge, b.shape) and sum(map(str.__eq__, a.dots, b.dots)) >= 2


def _trouble(rng: random.Random, spec: AtlasSpec, split: list[Entity], share: float) -> None:
    """The spec's knobs on one split, in proportion to its size."""
    pairs = rng.sample(split, len(split) // 2 * 2)
    for e, other in zip(pairs[: round(spec.near_duplicate_pictures * share)], pairs[::-1], strict=False):
        a, b, c, d = other.emblem.dots
        e.emblem = replace(other.emblem, dots=(_next(a), b, c, _next(d)))
    for e, other in zip(pairs[: round(spec.homonyms * share)], pairs[::-1], strict=False):
        e.homonym = other.homonym = True
        for third in split:
            if third.facts["neighbour"] == e.name:
                third.facts["neighbour"] = other.name
        e.name, e.slug = other.name, f"{other.name}-2"
    for tag in ("stale", "contradictory", "injected"):
        for e in rng.sample(split, round(getattr(spec, tag) * share)):
            e.tags.append(tag)


def _next(colour: str) -> str:
    names = list(COLOURS)
    return names[(names.index(colour) + 1) % len(names)]
