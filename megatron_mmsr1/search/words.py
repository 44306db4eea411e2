"""How the local backends cut text into words, and how a query is normalised for a cache key."""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"[^\W_]+")
_MARKS = re.compile("[\u0300-\u036f]")
# Words of a question that say nothing about which sentence answers it.
_STOP = """
a an and are as at be by did do does for from had has have how in is it its of on or that the their this to
was were what when where which who whom whose why will with
"""
STOP = frozenset(_STOP.split())


def words(text: str) -> list[str]:
    """Lower-case words without accents: `Zürich's 2nd` -> [zurich, s, 2nd]."""
    if text.isascii():
        return _WORD.findall(text.lower())
    return _WORD.findall(_MARKS.sub("", unicodedata.normalize("NFKD", text).casefold()))


def normalise(query: str) -> str:
    """The form of a query that a cache key holds: NFKC, case folded, white space squeezed."""
    return " ".join(unicodedata.normalize("NFKC", query).casefold().split())
