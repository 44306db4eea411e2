"""`mmsr1 plugins`: every seam is found without a list, with the parts of each and their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import megatron_mmsr1.cli.entry as cli
from megatron_mmsr1.plugins.seams import seam, seams

SHIPS = {
    "text_backend": {"bm25", "brave", "ddgs", "retrieve", "searxng", "serpapi", "serper", "tavily"},
    "image_backend": {"descriptor", "embedding", "recorded", "serpapi_lens", "serper_lens"},
    "page_reader": {"corpus", "jina", "trafilatura"},
    "summariser": {"extractive", "openai"},
    "uploader": {"s3", "signed_route"},
}


def test_every_seam_is_found_once() -> None:
    kinds = [r.kind for r in seams()]
    assert kinds == sorted(set(kinds)) and set(SHIPS) <= set(kinds)


@pytest.mark.parametrize("kind", SHIPS)
def test_what_ships_is_listed_with_its_file(kind: str) -> None:
    listed = {p.name: Path(p.file) for p in seam(kind).listed()}
    assert listed.keys() >= SHIPS[kind]
    shared = {"serpapi_lens": "_lens", "serper_lens": "_lens"}  # rows of one table
    assert all(path.is_file() and path.stem == shared.get(name, name) for name, path in listed.items())


def test_the_verb_says_it_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "summariser"]) == 0
    shown = capsys.readouterr().out
    assert "search.summarise.backend=NAME" in shown and "extractive.py" in shown and "bm25" not in shown
    assert cli.main(["plugins", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(r["kind"], r["name"]) for r in rows} >= {(k, n) for k, names in SHIPS.items() for n in names}


def test_a_misspelt_kind_gets_the_one_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "sumariser"]) == 2
    assert "did you mean summariser?" in capsys.readouterr().err


def test_a_backend_in_a_file_of_ones_own_is_used_by_its_path(tmp_path: Path) -> None:
    from megatron_mmsr1.config.search import TextSection
    from megatron_mmsr1.errors import UsageError
    from megatron_mmsr1.search.server.compose import make

    file = tmp_path / "mine.py"
    file.write_text("def make(section, tools):\n    return ('mine', section.country)\n\nBROKEN = 3\n")
    tools = None  # this one needs none
    assert make("text", TextSection(backend=f"{file}:make", country="se"), tools) == ("mine", "se")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"search\.text\.backend=.*mine\.py breaks the contract.*must be a function"):
        make("text", TextSection(backend=f"{file}:BROKEN"), tools)  # type: ignore[arg-type]
