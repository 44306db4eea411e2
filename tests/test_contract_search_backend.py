"""The local search backends and the page's example through the contract; a broken one fails it or is refused by file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from contracts.search_backend import check_image_backend, check_text_backend
from doc_examples import write_examples

from megatron_mmsr1 import config
from megatron_mmsr1.config.search import BudgetSection, SearchConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.tools import Tools
from megatron_mmsr1.search.server.compose import Backends, compose
from megatron_mmsr1.search.server.metrics import Metrics
from megatron_mmsr1.search.upstream.ledger import Ledger


def composed(cfg: SearchConfig, home: Path) -> Backends:
    return compose(cfg, Tools(cfg, Metrics(), Ledger(home / "ledger.sqlite", BudgetSection())))


async def test_the_pages_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_examples("search_backend.md", tmp_path)
    (tmp_path / "titles.tsv").write_text("a history of zurimo\thttp://l/1\nzurimo and bimo\thttp://l/2\n")
    monkeypatch.chdir(tmp_path)
    backend = composed(config.load(files["library.yaml"]).search, tmp_path).text
    found = await check_text_backend(backend, "history zurimo")
    assert [r.url for r in found] == ["http://l/1", "http://l/2"]
    (tmp_path / "titles.tsv").unlink()
    assert await check_text_backend(backend, "history") == []


async def test_the_local_backends_that_ship(atlas_world: Path, tmp_path: Path) -> None:
    backends = composed(SearchConfig(corpus=str(atlas_world)), tmp_path)
    assert await check_text_backend(backends.text, "capital")
    picture = next((atlas_world / "images").glob("*.png")).read_bytes()
    assert backends.image is not None and await check_image_backend(backends.image, picture)


class Broken:
    name, version, local = "broken", "1", True

    async def search(self, query: str, k: int) -> list[Any]:
        raise ValueError("index")

    async def close(self) -> None: ...


async def test_a_broken_one_fails_by_its_rule(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="raised ValueError: only a SearchFailure"):
        await check_text_backend(Broken(), "x")
    file = tmp_path / "mine.py"
    file.write_text("make = 3\n")
    cfg = SearchConfig.model_validate({"text": {"backend": f"{file}:make"}, "read": {"backend": "none"}})
    with pytest.raises(UsageError, match=r"search\.text\.backend=.*mine\.py breaks the contract of a text_backend"):
        composed(cfg, tmp_path)
