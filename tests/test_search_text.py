"""Local text search: the right page first, the right sentence out of it, the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_fixtures import TOWNS, page, url, write_corpus

from megatron_mmsr1.search.backends.corpus import Corpus, normalise, words
from megatron_mmsr1.search.backends.summarise.extractive import summarise
from megatron_mmsr1.search.backends.text.bm25 import Bm25
from megatron_mmsr1.search.web.pages import sentences


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus.load(write_corpus(tmp_path_factory.mktemp("corpus")))


@pytest.fixture(scope="module")
def bm25(corpus: Corpus) -> Bm25:
    return Bm25(corpus)


@pytest.mark.parametrize("name", TOWNS)
@pytest.mark.parametrize("query", ["{} capital", "what is the capital of {} ?", "{}", "{}'s river", "when was {} founded"])
async def test_a_town_is_found_by_its_name(bm25: Bm25, name: str, query: str) -> None:
    results = await bm25.search(query.format(name.title()), 3)
    assert results[0].url == url(name)
    assert [r.score for r in results] == sorted((r.score for r in results), reverse=True)


async def test_what_no_page_holds_is_not_found(bm25: Bm25) -> None:
    assert await bm25.search("qoxzu wibble", 5) == []
    assert await bm25.search("?!…", 5) == []


async def test_k_is_a_limit(bm25: Bm25) -> None:
    assert len(await bm25.search("capital", 2)) == 2
    assert len(await bm25.search("capital", 50)) == len(TOWNS) + 1


async def test_equal_scores_keep_the_corpus_order(tmp_path: Path) -> None:
    twins = [page("b", "<p>same words here</p>"), page("a", "<p>same words here</p>"), page("c", "<p>same words here</p>")]
    bm25 = Bm25(Corpus.load(write_corpus(tmp_path, twins)))
    assert [r.title for r in await bm25.search("words", 5)] == ["b", "a", "c"]


async def test_a_corpus_without_text_or_titles_still_answers(tmp_path: Path) -> None:
    bm25 = Bm25(Corpus.load(write_corpus(tmp_path, [page("zurimo", ""), page("!", "")])))
    assert [r.title for r in await bm25.search("zurimo", 5)] == ["zurimo"]


@given(st.text(max_size=60), st.integers(1, 50))
def test_any_query_ranks(bm25: Bm25, query: str, k: int) -> None:
    found = bm25.rank(query, k)
    assert len(found) <= k
    assert all(score > 0 for _, score in found)
    assert found == bm25.rank(query, k)


@pytest.mark.parametrize("name", TOWNS)
def test_the_summary_answers_from_prose(corpus: Corpus, name: str) -> None:
    capital, river, year = TOWNS[name]
    text = corpus.by_url[url(name)].text
    assert summarise(f"{name} capital", text, 1) == f"the capital of {name} is {capital} ."
    assert summarise(f"what is the river of {name} ?", text, 1) == f"the river of {name} is {river} ."
    assert summarise(f"{name} founded", text, 1) == f"{name} was founded in {year} ."


def test_sentences_come_in_page_order() -> None:
    text = "Alpha is first. Beta is second. Gamma is third."
    assert summarise("gamma alpha", text, 2) == "Alpha is first. Gamma is third."


def test_what_matches_nothing_gives_the_lead() -> None:
    text = "infobox row\nAlpha is first. Beta is second."
    assert summarise("zzz", text, 1) == "Alpha is first."
    assert summarise("zzz", "", 2) == ""


def test_a_row_that_its_prose_repeats_is_passed_over() -> None:
    text = "capital: belato\nthe capital of zurimo is belato .\nit is small ."
    assert summarise("zurimo capital", text, 2) == "the capital of zurimo is belato . it is small ."
    assert summarise("mayor", "mayor: pipo\nzurimo is a town .", 1) == "mayor: pipo"


@given(st.text(alphabet="abc .\n", max_size=120), st.text(alphabet="abc ", max_size=10), st.integers(1, 4))
def test_a_summary_is_some_of_the_sentences(text: str, query: str, top: int) -> None:
    page, found = sentences(text), summarise(query, text, top)
    assert bool(found) == bool(page)
    rests = {found}
    for s in page:  # in order, each taken once or passed over
        rests |= {r.removeprefix(s).removeprefix(" ") for r in rests if r.startswith(s)}
    assert "" in rests
    assert summarise(query, text, 10_000).count(".") >= found.count(".")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Zürich's 2nd", ["zurich", "s", "2nd"]),
        ("ﬁne_art", ["fine", "art"]),
        ("ＡＢＣ", ["abc"]),
        ("", []),
        ("北京 x", ["北京", "x"]),
    ],
)
def test_words(text: str, want: list[str]) -> None:
    assert words(text) == want


def test_queries_that_mean_the_same_share_a_key() -> None:
    assert normalise("  Zurimo\tCAPITAL\n") == normalise("zurimo capital")
    assert normalise("zurimo capital") != normalise("zurimo river")
