"""Text search over the local corpus: BM25 (Robertson and Zaragoza 2009; Lucene's idf) on titles and on texts, summed."""

# bm25s has no types.
# pyright: standard

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_mmsr1.config.search import TextSection
from megatron_mmsr1.search.backends.corpus import Corpus, words
from megatron_mmsr1.search.backends.interfaces import TextResult
from megatron_mmsr1.search.backends.tools import Tools

TITLE_WEIGHT = 3.0  # a page is first of all about what its title says; others merely mention it
SNIPPET_CHARS = 200


def make(_: TextSection, tools: Tools) -> Bm25:
    return Bm25(tools.corpus())


class Bm25:
    """score(page) = TITLE_WEIGHT * bm25(title) + bm25(text); pages that share no word with the query are left out.

    Equal scores keep the corpus's order, so that a run repeats.
    """

    name = "bm25"
    local = True

    def __init__(self, corpus: Corpus):
        self._corpus = corpus
        self.version = f"1:{corpus.version}"
        self._titles = _index([words(p.title) for p in corpus.pages])
        self._texts = _index([words(p.text) for p in corpus.pages])

    async def search(self, query: str, k: int) -> Sequence[TextResult]:
        return [self._result(i, s) for i, s in self.rank(query, k)]

    def rank(self, query: str, k: int) -> list[tuple[int, float]]:
        """(place in the corpus, score) of at most `k` pages, best first."""
        terms = words(query)
        scores = TITLE_WEIGHT * _scores(self._titles, terms) + _scores(self._texts, terms)
        if not np.any(scores):
            return []
        order = np.argsort(-scores, kind="stable")[:k]
        return [(int(i), float(scores[i])) for i in order if scores[i] > 0]

    def _result(self, i: int, score: float) -> TextResult:
        page = self._corpus.pages[i]
        return TextResult(page.url, page.title, page.text[:SNIPPET_CHARS], score)

    async def close(self) -> None:
        pass


def _index(documents: list[list[str]]) -> tuple[Any, frozenset[str], int]:
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # its import sets DEBUG
    vocabulary = frozenset(w for d in documents for w in d)
    if not vocabulary:
        return None, vocabulary, len(documents)
    index = bm25s.BM25(method="lucene")
    index.index(documents, show_progress=False)
    return index, vocabulary, len(documents)


def _scores(index: tuple[Any, frozenset[str], int], terms: list[str]) -> np.ndarray:
    bm25, vocabulary, n = index
    known = [t for t in terms if t in vocabulary]
    return bm25.get_scores(known) if known else np.zeros(n, np.float32)
