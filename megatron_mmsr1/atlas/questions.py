"""Questions of six kinds, by the tools that an answer needs:

known    on a well-known entity, by name: none (the cold start has taught the fact)
picture  on what the picture shows: none
image    the name of the place in the picture: image search
text     a fact of an unknown entity, by name: text search
both     a fact of the unknown place in the picture: image search, then text search
crop     on the charge of an emblem too small to read: crop

Each has phrasings for training and one that is only held out. Held-out phrasings use words that training uses elsewhere: what
is new is the combination.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import Any

from megatron_mmsr1.atlas.canvas import CORNERS
from megatron_mmsr1.atlas.spec import KINDS, SEARCH_FREE
from megatron_mmsr1.atlas.world import ATTRIBUTES, Entity, World

PICTURE_ATTRIBUTES = ("field colour", "charge colour", "charge shape")
# A few pixels still tell the field's colour.
CROP_ATTRIBUTES = ("charge colour", "charge shape")
THIS = "this place"

# Three (or more) phrasings that train, then the one that is held out.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "founded": (
        "when was {} founded ?",
        "in which year was {} founded ?",
        "tell me when {} was founded .",
        "what year was {} founded ?",
    ),
    "capital": (
        "what is the capital of {} ?",
        "name the capital of {} .",
        "which capital has {} ?",
        "tell me the capital of {} .",
    ),
    "river": (
        "which river runs through {} ?",
        "tell me the river of {} .",
        "what is the river of {} ?",
        "name the river of {} .",
    ),
    "ruler": (
        "who rules {} ?",
        "name the ruler of {} .",
        "tell me the ruler of {} .",
        "who is the ruler of {} ?",
    ),
    "neighbour": (
        "which place is the neighbour of {} ?",
        "tell me the neighbour of {} .",
        "name the neighbour of {} .",
        "what is the neighbour of {} ?",
    ),
    "name": (
        "what is this place called ?",
        "what is the name of this place ?",
        "tell me the name of this place .",
        "which name has this place ?",
    ),
    "field colour": (
        "what colour is the field ?",
        "which colour has the field ?",
        "name the colour of the field .",
        "tell me the colour of the field .",
    ),
    "charge colour": (
        "what colour is the charge ?",
        "which colour has the charge ?",
        "tell me the colour of the charge .",
        "name the colour of the charge .",
    ),
    "charge shape": (
        "what shape is the charge ?",
        "name the shape of the charge .",
        "tell me the shape of the charge .",
        "which shape has the charge ?",
    ),
}
# What to type into the text search, after the name (or `this place`, before it is known).
QUERY_WORD = {a: a for a in ATTRIBUTES} | {"name": "name"} | {a: a for a in PICTURE_ATTRIBUTES}

TOOLS = {"known": "", "picture": "", "image": "i", "text": "t", "both": "it", "crop": "c"}


@dataclass(frozen=True, slots=True)
class Question:
    kind: str
    entity: str  # Entity.id
    name: str
    attribute: str
    phrasing: int
    text: str
    gold: str
    corner: int = -1  # where a small emblem lies (`canvas.CORNERS`); -1: the emblem fills the picture

    @property
    def category(self) -> str:
        if self.kind == "crop":
            return "crop_required"
        return "search_free" if self.kind in SEARCH_FREE else "search_required"

    def extra(self) -> dict[str, Any]:
        """What the data set keeps in `extra_info`."""
        return asdict(self) | {"tools": TOOLS[self.kind]}


def phrasings(attribute: str, split: str) -> list[int]:
    """The phrasings of a split: `train`, `heldout`, or `all` (the cold start's)."""
    n = len(PHRASINGS[attribute])
    return {"train": list(range(n - 1)), "heldout": [n - 1], "all": list(range(n))}[split]


def attributes(kind: str) -> tuple[str, ...]:
    return {"picture": PICTURE_ATTRIBUTES, "crop": CROP_ATTRIBUTES, "image": ("name",)}.get(kind, ATTRIBUTES)


def gold(e: Entity, attribute: str) -> str:
    if attribute in e.facts:
        return e.facts[attribute]
    return {
        "name": e.name,
        "field colour": e.emblem.field,
        "charge colour": e.emblem.charge,
        "charge shape": e.emblem.shape,
    }[attribute]


def ask(e: Entity, kind: str, attribute: str, phrasing: int) -> Question:
    about = e.name if kind in ("known", "text") else THIS
    text = PHRASINGS[attribute][phrasing].format(about)
    return Question(kind, e.id, e.name, attribute, phrasing, text, gold(e, attribute))


def draw_question(rng: random.Random, e: Entity, kind: str, split: str) -> Question:
    """At random, but for `corner`, which a crop question gets with its picture."""
    attribute = rng.choice(attributes(kind))
    return ask(e, kind, attribute, rng.choice(phrasings(attribute, split)))


def questions(world: World, split: str) -> list[Question]:
    """The questions of `train` or `heldout`, in the spec's mix, shuffled. The shares are exact up to rounding, so that every
    seed's table compares like with like."""
    spec = world.spec
    rng = random.Random(f"atlas/questions/{split}/{spec.seed}")
    n = {"train": spec.train_questions, "heldout": spec.heldout_questions}[split]
    total = sum(spec.mix.values())
    bounds, at = [0], 0.0
    for kind in KINDS:
        at += spec.mix[kind]
        bounds.append(round(n * at / total))
    named = [e for e in world.split(split) if not e.homonym]
    out = []
    for kind, lo, hi in zip(KINDS, bounds, bounds[1:], strict=False):
        pool = {"known": world.known, "text": named, "both": named}.get(kind, world.split(split))
        drawn = [draw_question(rng, rng.choice(pool), kind, split) for _ in range(hi - lo)]
        out += [replace(q, corner=rng.randrange(len(CORNERS))) for q in drawn] if kind == "crop" else drawn
    rng.shuffle(out)
    return out
