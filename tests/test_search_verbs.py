"""`mmsr1 search VERB` as a person types it: exit codes, tables and JSON, and errors that say what to do."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from search_fixtures import TOWNS, url, write_corpus, write_images
from store_fixtures import make, rows

import megatron_mmsr1.cli.entry as cli
from megatron_mmsr1.cli import search as cli_search
from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.procs.service import Service
from megatron_mmsr1.search.server.launch import launch

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_corpus(tmp_path_factory.mktemp("world"))
    write_images(directory, 4)
    return directory


@pytest.fixture(scope="module")
def server(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    tmp = tmp_path_factory.mktemp("server")
    with launch(SearchConfig(corpus=str(corpus)), cache_path=tmp / "s.sqlite", log=tmp / "log") as s:
        yield s


def said(capsys: Capture, *argv: str) -> str:
    """A verb that ends well: all that it prints."""
    assert cli.main(["search", *argv]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def parsed(capsys: Capture, *argv: str) -> Any:
    return json.loads(said(capsys, *argv, "--json"))


def fails(capsys: Capture, code: int, *argv: str) -> str:
    assert cli.main(["search", *argv]) == code
    err = capsys.readouterr().err
    assert err.startswith("mmsr1: ") and "Traceback" not in err
    return err


# ------------------------------------------------------------------------------------------------------------------- serve
@pytest.mark.parametrize("as_json", [True, False])
def test_serve_says_where_it_listens(corpus: Path, as_json: bool, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "megatron_mmsr1.cli", "search", "serve", f"corpus={corpus}", "--port", "0"]
    argv += [f"cache={tmp_path / 's.sqlite'}", *(["--json"] if as_json else [])]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        try:
            at = json.loads(line)["url"] if as_json else line.split(" at ")[1].split(" (")[0]
            with urllib.request.urlopen(f"{at}/readyz") as r:
                assert r.status == 200
            assert as_json or str(corpus) in line
        finally:
            process.send_signal(signal.SIGTERM)
        assert (process.wait(30), process.stdout.read(), process.stderr.read()) == (0, "", "")
    assert (tmp_path / "s.sqlite").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["corpus=no-such"], ["no corpus.jsonl in no-such", "search.corpus"]),
        (["text.backend=bing"], ["search.text.backend=bing", "bm25", "serper"]),
        (["text.backend=serper"], ["SERPER_API_KEY", "search.keys"]),
        (["text.backend=searxng"], ["search.text.url", "name yours"]),
        (["text.backend=searxng", "text.url=http://h:1", "mode=record"], ["search.mode=record", "search.cache"]),
        (["mode=replay-strict", "cache=none.sqlite"], ["replay-strict", "none.sqlite", "mmsr1 search import"]),
        (["text.backend=searxng", "text.url=http://h:1", "keys=none.env"], ["none.env"]),
        (["mode=sometimes"], ["search.mode", "replay-strict"]),
        (["text.backend=searxng", "text.retries=9"], ["search.text.retries"]),
        (["text.backend=serper", "text.usd_per_1000=1"], ["usd_per_1000", "price_as_of"]),
        (["text.options.indexx=5", "text.backend=retrieve", "text.url=http://h:1"], ["search.text.options.indexx", "index"]),
        (["corpus"], ["key=value"]),
        (["--config", "none.yaml"], ["no config at none.yaml"]),
    ],
)
def test_serve_of_what_cannot_be(
    argv: list[str], says: list[str], capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    err = fails(capsys, 2, "serve", *argv, "--port", "0")
    assert all(s in err for s in says), err


def test_the_section_is_a_runs_own(tmp_path: Path, corpus: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {{path: x}}\nsearch: {{corpus: {corpus}, text_top_sentences: 4}}\n")
    cfg = cli_search.section(str(file), ["text_top_sentences=7", "budget.run_calls=5"])
    assert (cfg.corpus, cfg.text_top_sentences, cfg.budget.run_calls) == (str(corpus), 7, 5)


# ------------------------------------------------------------------------------------------------------------------- query
@pytest.mark.parametrize("name", TOWNS)
def test_a_question_in_words(server: Service, capsys: Capture, name: str) -> None:
    asked = ["query", f"{name} capital", "--url", server.url, "-k", "2"]
    out = said(capsys, *asked)
    assert out.startswith(f"1. {name}  {url(name)}\n") and TOWNS[name][0] in out and "(bm25, " in out
    got = parsed(capsys, *asked)
    assert (got["status"], got["backend"], got["cached"], len(got["hits"])) == ("ok", "bm25", True, 2)
    assert got["hits"][0]["link"] == url(name)


def test_a_question_by_picture(server: Service, corpus: Path, capsys: Capture) -> None:
    asked = ["query", "--image", str(corpus / "images" / "3.png"), "--url", server.url, "-k", "1"]
    assert said(capsys, *asked).startswith("1. emblem 3  http://towns.test/e3\n   a picture of ")
    (hit,) = parsed(capsys, *asked)["hits"]
    assert hit["title"] == "emblem 3" and len(hit["image"]) > 100


def test_nothing_found_is_no_failure(server: Service, capsys: Capture) -> None:
    assert said(capsys, "query", "qoxzu", "--url", server.url).startswith("no results\n")
    assert parsed(capsys, "query", "qoxzu", "--url", server.url)["status"] == "empty"


def test_questions_that_fail_say_why(server: Service, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    at = ("--url", server.url)
    assert "not both" in fails(capsys, 2, "query", "a", "--image", "x.png", *at)
    assert all(s in fails(capsys, 1, "query", "a", "-k", "0", *at) for s in (server.url, "refused", "k: "))
    assert "refused" in fails(capsys, 1, "query", "--image", str(tmp_path / "x.png"), *at)
    for bad in ("http://127.0.0.1:9", "http://no host", "nonsense"):
        err = fails(capsys, 1, "query", "a", "--url", bad)
        assert bad in err and "no connection" in err
    # As JSON too: what it said is on stdout, for a program, and the sentence on stderr.
    assert cli.main(["search", "query", "a", "-k", "0", *at, "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["status"] == "refused" and err.startswith("mmsr1: ")


# ---------------------------------------------------------------------------------------------------------------- estimate
def test_an_estimate(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "model: {path: x}\ndata: {prompts_per_step: 100, group_size: 2}\ntrain: {steps: 10}\n"
        "search:\n  text: {backend: serper, usd_per_1000: 1, price_as_of: 2026-01-01}\n  image: {backend: none}\n"
    )
    asked = ["estimate", str(tmp_path / "c.yaml"), "search.estimate.text_per_trajectory=1", "search.estimate.text_cached=0"]
    out = said(capsys, *asked)
    assert "10 steps of 200 trajectories" in out and "in all: 2,000 calls, $2.00" in out and "- search.budget has no cap" in out
    got = parsed(capsys, *asked)
    assert (got["usd"], got["calls"], got["stages"][0]["price_as_of"]) == (2.0, 2000, "2026-01-01")
    assert [s["kind"] for s in got["stages"]] == ["text"]
    assert "no config at none.yaml" in fails(capsys, 2, "estimate", "none.yaml")
    assert "search.text.backend=bing" in fails(capsys, 2, *asked, "search.text.backend=bing")
    assert "did you mean" in fails(capsys, 2, *asked, "search.txt.backend=serper")


# ------------------------------------------------------------------------------------------------- export, import and stats
@pytest.mark.long
def test_a_store_goes_out_and_in(capsys: Capture, tmp_path: Path) -> None:
    a, b, snap = (str(tmp_path / n) for n in ("a.sqlite", "b.sqlite", "a.mmsr1snap"))
    ident = make(tmp_path / "a.sqlite", rows(30), {"text": {"name": "serper", "version": "1", "local": False}})
    assert parsed(capsys, "export", a, snap)["manifest"]["id"] == ident
    assert parsed(capsys, "import", snap, b)["added"] == 30
    assert parsed(capsys, "stats", b)["snapshot"]["id"] == ident
    assert ident in said(capsys, "export", a, snap + "2")
    assert "30 entries" in said(capsys, "import", snap, b)  # all of them were there before
    assert ident in said(capsys, "stats", b)
    assert "no search store at" in fails(capsys, 2, "export", str(tmp_path / "none"), snap + "3")
    assert "none.snap" in fails(capsys, 2, "import", str(tmp_path / "none.snap"), b)
    whole = (tmp_path / "a.mmsr1snap").read_bytes()
    (tmp_path / "torn").write_bytes(whole[:2000])
    assert "torn" in fails(capsys, 1, "import", str(tmp_path / "torn"), b)
    assert "no search store at" in fails(capsys, 2, "stats", str(tmp_path / "none"))
    (tmp_path / "words").write_text("no store")
    for verb in (["stats", str(tmp_path / "words")], ["export", str(tmp_path / "words"), snap + "4"]):
        assert str(tmp_path / "words") in fails(capsys, 1, *verb)


def test_a_servers_statistics(server: Service, capsys: Capture) -> None:
    said(capsys, "query", "zurimo", "--url", server.url)
    got = parsed(capsys, "stats", server.url + "/")
    assert got["mode"] == "live" and got["calls"]["text"]["ok"] >= 1 and got["backends"]["text"]["name"] == "bm25"
    assert got["snapshot"]["id"] in said(capsys, "stats", server.url)
    assert "http://127.0.0.1:9" in fails(capsys, 1, "stats", "http://127.0.0.1:9")


# ----------------------------------------------------------------------------------------------------------------- convert
def test_recorded_results_are_made_servable(capsys: Capture, corpus: Path, tmp_path: Path) -> None:
    recorded = {"id_1": {"tool_returned_web_title_list": ["a tower"], "tool_returned_images_urls": [None]}}
    (tmp_path / "cache.pkl").write_bytes(pickle.dumps(recorded))
    picture = (corpus / "images" / "0.png").read_bytes()
    pq.write_table(pa.table({"data_id": ["id_1"], "images": [[{"bytes": picture}]]}), tmp_path / "rows.parquet")
    source, questions = str(tmp_path / "cache.pkl"), str(tmp_path / "rows.parquet")
    for n, as_json in enumerate((True, False)):
        argv = ["convert", source, "--rows", questions, "--out", str(tmp_path / f"out{n}")]
        if as_json:
            assert parsed(capsys, *argv)["recorded"] == 1
        else:
            assert "1 pictures can be looked up" in said(capsys, *argv)
    assert "nothing at none.pkl" in fails(capsys, 2, "convert", "none.pkl", "--rows", questions, "--out", str(tmp_path / "o"))
    assert "nothing at none.parquet" in fails(capsys, 2, "convert", source, "--rows", "none.parquet", "--out", "o")
    assert "nothing at none" in fails(
        capsys, 2, "convert", source, "--rows", questions, "--images", "none", "--out", str(tmp_path / "o")
    )
    (tmp_path / "evil.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    err = fails(capsys, 2, "convert", str(tmp_path / "evil.pkl"), "--rows", questions, "--out", str(tmp_path / "o"))
    assert "evil.pkl" in err and not (tmp_path / "o").exists()
