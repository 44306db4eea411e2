"""The summariser that needs no model: the sentences of a page that say most on the query, in page order."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from megatron_mmsr1.config.search import SummariseSection
from megatron_mmsr1.search.backends.corpus import STOP, words
from megatron_mmsr1.search.backends.tools import Tools
from megatron_mmsr1.search.web.pages import sentences

PAGE_CHARS = 30_000  # what the paper's summariser reads of a page
K1, B = 1.2, 0.75  # BM25's usual saturation and length normalisation, a sentence being the document
FRAGMENT = 0.5  # what a table's row or a heading is worth of a sentence: short, it would win, and says less


def make(_: SummariseSection, tools: Tools) -> Extractive:
    return Extractive(tools.cfg.text_top_sentences)


class Extractive:
    """The `top` best sentences by BM25 over the page's own sentences; ties, and what no word matches, go to the earlier one."""

    name = "extractive"
    local = True

    def __init__(self, top: int):
        self._top = top
        self.version = f"1:{top}"

    async def summarise(self, query: str, page_text: str) -> str:
        return summarise(query, page_text, self._top)

    async def close(self) -> None:
        pass


def summarise(query: str, page_text: str, top: int) -> str:
    """At most `top` sentences joined by spaces; the page's first ones where no word of the query occurs.

    A sentence all of whose words were said already adds nothing and is passed over, as an infobox's row is beside its prose.
    """
    page = _analyse(page_text[:PAGE_CHARS])
    terms = set(words(query))
    terms = sorted((terms - STOP) or terms)
    chosen: list[int] = []
    said: set[str] = set()
    for i in sorted(range(len(page.sentences)), key=lambda i: (-page.score(i, terms), page.fragment[i], i)):
        if len(chosen) == top:
            break
        if not chosen or not said.issuperset(page.counts[i]):
            chosen.append(i)
            said.update(page.counts[i])
    return " ".join(page.sentences[i] for i in sorted(chosen))


@dataclass(slots=True, frozen=True)
class _Analysis:
    sentences: list[str]
    counts: list[Counter[str]]
    fragment: list[bool]  # no sentence but a heading or a table's row
    idf: dict[str, float]
    mean: float  # words a sentence

    def score(self, i: int, terms: list[str]) -> float:
        counts = self.counts[i]
        shared = [t for t in terms if t in counts]
        penalty = K1 * (1 - B + B * counts.total() / self.mean) if shared else K1
        score = sum(self.idf[t] * counts[t] * (K1 + 1) / (counts[t] + penalty) for t in shared)
        return score * FRAGMENT if self.fragment[i] else score


@lru_cache(maxsize=4096)
def _analyse(text: str) -> _Analysis:
    """Cached, for the same pages come back all the time."""
    page = sentences(text)
    counts = [Counter(words(s)) for s in page]
    df = Counter(w for c in counts for w in c)
    idf = {w: math.log(1 + (len(page) - n + 0.5) / (n + 0.5)) for w, n in df.items()}
    mean = sum(c.total() for c in counts) / max(len(counts), 1)
    return _Analysis(page, counts, [not s.rstrip("\"')]").endswith(tuple(".!?。！？")) for s in page], idf, mean)
