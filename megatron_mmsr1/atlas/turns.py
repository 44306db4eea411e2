"""What an assistant of this world writes: the demonstrations of the cold start and the scripted policies speak alike.

The first token of the reason tells the action, so the decision *when to search* is one token, and reasons are two or three
tokens long: every token costs time on two cores.
"""

from __future__ import annotations

from megatron_mmsr1.atlas.canvas import corner_box
from megatron_mmsr1.atlas.picture import COLOURS, SHAPES
from megatron_mmsr1.atlas.questions import QUERY_WORD, THIS, Question
from megatron_mmsr1.protocol import IMAGE_SEARCH

ANSWER, IMAGE, TEXT, CROP = "a", "i", "t", "c"
REASON = {ANSWER: " I know", IMAGE: " look at it", TEXT: " need facts", CROP: " zoom in"}
UNKNOWN = "unknown"
# One token with the space before it; a name or a year is tokens that need none.
WORD_ANSWERS = frozenset((*COLOURS, *SHAPES, UNKNOWN))


def answer(text: str) -> str:
    return f"<reason>{REASON[ANSWER]}</reason><answer>{spaced(text)}</answer>"


def image_search() -> str:
    return f"<reason>{REASON[IMAGE]}</reason>{IMAGE_SEARCH}"


def text_search(query: str) -> str:
    return f"<reason>{REASON[TEXT]}</reason><text_search>{query}</text_search>"


def crop(corner: int) -> str:
    """The box of the emblem in that corner, cut out of the first picture."""
    box = ",".join(map(str, corner_box(corner)))
    return f"<reason>{REASON[CROP]}</reason><crop>{box}</crop>"


def spaced(text: str) -> str:
    return f" {text}" if text in WORD_ANSWERS else text


def query(q: Question, *, name_known: bool) -> str:
    """The text search for a question. Before the name is known there is nothing better to type than `this place`."""
    if q.kind in ("picture", "crop"):
        return QUERY_WORD[q.attribute]
    return f"{q.name if name_known else THIS} {QUERY_WORD[q.attribute]}"
