"""Reading the local corpus's own pages."""

from __future__ import annotations

from megatron_mmsr1.config.search import ReadSection
from megatron_mmsr1.search.backends.corpus import Corpus
from megatron_mmsr1.search.backends.interfaces import Page, SearchFailure
from megatron_mmsr1.search.backends.tools import Tools
from megatron_mmsr1.trajectory import ToolStatus


def make(_: ReadSection, tools: Tools) -> CorpusReader:
    return CorpusReader(tools.corpus())


class CorpusReader:
    """Reads the corpus's own pages by URL; any other URL is empty, since there is no network here."""

    name = "corpus"
    local = True

    def __init__(self, corpus: Corpus):
        self._pages = corpus.by_url
        self.version = corpus.version

    async def read(self, url: str) -> Page:
        page = self._pages.get(url)
        if page is None:
            raise SearchFailure(ToolStatus.EMPTY, "the local corpus has no page with this URL")
        return page

    async def close(self) -> None:
        pass
