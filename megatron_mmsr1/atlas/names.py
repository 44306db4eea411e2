"""Names that nobody can know: two or three consonant-vowel syllables, lower case, like `zurimo`.

The tokenizer has one token a syllable, so a name is two or three tokens wherever it stands. A quarter of all names, told by
their CRC-32, is reserved for worlds; the throw-away entities of the cold start take the others. So no demonstration can
give away a name that any world, of any seed, asks about.
"""

from __future__ import annotations

import random
import zlib

SYLLABLES = tuple(c + v for c in "bdfgklmnprstvz" for v in "aeiou")


def reserved(name: str) -> bool:
    """Whether a name belongs to worlds (else: to throw-away entities)."""
    return zlib.crc32(name.encode()) % 4 == 0


def draw_name(rng: random.Random, taken: set[str], *, world: bool) -> str:
    """A name that is not in `taken`, and is added to it. `world`: from the names that are reserved for worlds."""
    while True:
        name = "".join(rng.choices(SYLLABLES, k=rng.choice((2, 2, 3))))
        if reserved(name) == world and name not in taken:
            taken.add(name)
            return name
