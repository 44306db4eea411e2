"""The server over real loopback HTTP: its endpoints, its typed errors, its cache, its metrics, its faults."""

from __future__ import annotations

import asyncio
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from search_fixtures import TOWNS, png, url, write_corpus, write_images
from test_search_images import HOSTILE

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.procs.service import Service
from megatron_mmsr1.search.client import SearchClient
from megatron_mmsr1.search.server.launch import launch
from megatron_mmsr1.search.wire import MAX_BODY_BYTES


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_corpus(tmp_path_factory.mktemp("world"))
    write_images(directory, 10)
    return directory


@pytest.fixture(scope="module")
def server(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    tmp = tmp_path_factory.mktemp("server")
    with launch(SearchConfig(corpus=str(world)), cache_path=tmp / "cache.sqlite", log=tmp / "log") as s:
        yield s
    log = (tmp / "log").read_text()
    assert s.child.returncode == 0, log[-4000:]
    assert "Traceback" not in log


@pytest.fixture
async def client(server: Service) -> Any:
    async with SearchClient(server.url) as c:
        yield c


def post(server: Service, path: str, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    request = urllib.request.Request(server.url + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as r:
            return r.status, orjson.loads(r.read())
    except urllib.error.HTTPError as e:
        with e:
            return e.code, orjson.loads(e.read())


def metric(server: Service, name: str) -> float:
    with urllib.request.urlopen(server.url + "/metrics") as r:
        found = re.search(rf"^{re.escape(name)} (\S+)$", r.read().decode(), re.MULTILINE)
    assert found, name
    return float(found.group(1))


# ----------------------------------------------------------------------------------------------------------- what is found
@pytest.mark.parametrize("name", TOWNS)
async def test_text_search_finds_reads_and_summarises(client: SearchClient, name: str) -> None:
    reply = await client.text(f"{name} capital", k=3)
    assert (reply.status, reply.backend, len(reply.hits)) == ("ok", "bm25", 3)
    assert (reply.hits[0].link, reply.hits[0].title) == (url(name), name)
    assert f"the capital of {name} is {TOWNS[name][0]} ." in reply.hits[0].summary


async def test_image_search_returns_pictures(client: SearchClient, world: Path) -> None:
    data = (world / "images" / "4.png").read_bytes()
    reply = await client.image(data, k=2)
    assert (reply.status, reply.backend, len(reply.hits)) == ("ok", "descriptor", 2)
    assert (reply.hits[0].title, reply.hits[0].image) == ("emblem 4", data)


async def test_reading_and_summarising(client: SearchClient) -> None:
    page = await client.read(url("zurimo"))
    assert (page.status, page.title, page.url) == ("ok", "zurimo", url("zurimo"))
    assert page.text.startswith("capital: belato\nzurimo is a town .")
    assert (await client.read("http://elsewhere.test/")).status == "empty"
    summary = await client.summarise("river", page.text)
    assert (summary.status, "the river of zurimo is nofevo ." in summary.summary) == ("ok", True)
    assert (await client.summarise("river", "")).status == "empty"


async def test_nothing_found_is_empty_not_a_failure(client: SearchClient) -> None:
    reply = await client.text("qoxzu")
    assert (reply.status, reply.hits, reply.status.infrastructure) == ("empty", [], False)


async def test_the_same_question_twice_is_cached(server: Service, world: Path) -> None:
    hits = 'mmsr1_search_cache_hits_total{kind="text"}'
    before = metric(server, hits)
    async with SearchClient(server.url) as client:
        first, second = await client.text("tanelu river", k=4), await client.text(" Tanelu  RIVER ", k=4)
        assert (first.cached, second.cached) == (False, True)
        assert first.hits == second.hits
        assert not (await client.text("tanelu river", k=3)).cached
        data = (world / "images" / "1.png").read_bytes()
        assert [(await client.image(data, k=4)).cached for _ in range(2)] == [False, True]
        assert (await client.read(url("zurimo"))).status == (await client.summarise("a", "A b.")).status == "ok"
    assert metric(server, hits) == before + 1


async def test_a_thousand_at_once(client: SearchClient) -> None:
    replies = await asyncio.gather(*(client.text(f"kadepi {i % 50}") for i in range(1000)))
    assert {r.status for r in replies} == {"ok"}
    assert sum(not r.cached for r in replies) == 50


def test_the_counts_add_up(server: Service) -> None:
    ok, empty = 'mmsr1_search_calls_total{kind="read",status="ok"}', 'mmsr1_search_calls_total{kind="read",status="empty"}'
    before = metric(server, ok), metric(server, empty), metric(server, 'mmsr1_search_seconds_count{kind="read"}')
    for _ in range(3):
        post(server, "/v1/read", {"url": url("zurimo")})
    post(server, "/v1/read", {"url": "http://x.test"})
    after = metric(server, ok), metric(server, empty), metric(server, 'mmsr1_search_seconds_count{kind="read"}')
    assert [a - b for a, b in zip(after, before, strict=True)] == [3, 1, 4]
    assert metric(server, "mmsr1_search_in_flight") == 0


def test_health(server: Service) -> None:
    for path, want in (("/healthz", "ok"), ("/readyz", "ready")):
        with urllib.request.urlopen(server.url + path) as r:
            assert (r.status, orjson.loads(r.read())) == (200, {"status": want})


# ---------------------------------------------------------------------------------------------------------- Search-R1's form
def test_the_retrieve_contract(server: Service) -> None:
    code, body = post(server, "/retrieve", {"queries": ["zurimo capital", "qoxzu"], "topk": 2, "return_scores": True})
    assert code == 200
    assert list(body) == ["result"]
    first, second = body["result"]
    assert (len(first), second) == (2, [])
    assert set(first[0]) == {"document", "score"}
    assert first[0]["score"] > first[1]["score"]
    assert first[0]["document"]["id"] == url("zurimo")
    title, text = first[0]["document"]["contents"].split("\n", 1)
    assert title == '"zurimo"'
    assert "zurimo is a town ." in text


def test_retrieve_without_scores_or_topk(server: Service) -> None:
    code, body = post(server, "/retrieve", {"queries": ["capital"]})
    assert code == 200
    assert [set(d) for d in body["result"][0]] == [{"id", "contents"}] * 3


# -------------------------------------------------------------------------------------------------------------- bad requests
@pytest.mark.parametrize(
    ("path", "body", "code", "says"),
    [
        ("/v1/search/text", b"", 400, "JSON"),
        ("/v1/search/text", b"{", 400, "JSON"),
        ("/v1/search/text", b"[]", 400, "object"),
        ("/v1/search/text", b"\xff\xfe", 400, ""),
        ("/v1/search/text", b'{"query":"\\ud800"}', 400, ""),
        ("/v1/search/text", b"[" * 100_000, 400, ""),
        ("/v1/search/text", {}, 400, "query: Field required"),
        ("/v1/search/text", {"query": "  "}, 400, "query"),
        ("/v1/search/text", {"query": 5}, 400, "query"),
        ("/v1/search/text", {"query": "x" * 5000}, 400, "query"),
        ("/v1/search/text", {"query": "x", "k": 0}, 400, "k: "),
        ("/v1/search/text", b'{"query":"x","k":1000000000000000000000000000000}', 400, "k: "),
        ("/v1/search/text", {"query": "x", "k": "5"}, 400, "k: "),
        ("/v1/search/text", {"query": "x", "k": True}, 400, "k: "),
        ("/v1/search/text", {"query": "x", "k": 2.5}, 400, "k: "),
        ("/v1/search/text", {"query": "x", "top": 5}, 400, "top: "),
        ("/v1/search/image", {"image_base64": "%%%"}, 400, "image_base64"),
        ("/v1/search/image", {"image_base64": "äöü"}, 400, "image_base64"),
        ("/v1/search/image", {"image_base64": "abc"}, 400, "image_base64"),
        ("/v1/search/image", {"image_base64": None}, 400, "image_base64"),
        ("/v1/search/image", b"x" * (MAX_BODY_BYTES + 1), 413, "larger"),
        ("/v1/read", {"url": ""}, 400, "url"),
        ("/v1/summarise", {"query": "x", "text": "y" * 1_000_001}, 400, "text"),
        ("/retrieve", {"queries": []}, 400, "queries"),
        ("/retrieve", {"queries": ["x"] * 513}, 400, "queries"),
        ("/retrieve", {"queries": "x"}, 400, "queries"),
        ("/nowhere", {}, 404, "Not Found"),
        ("/healthz", {}, 405, "Method"),
    ],
)
def test_a_bad_request_is_a_typed_refusal(server: Service, path: str, body: Any, code: int, says: str) -> None:
    got, reply = post(server, path, body)
    assert (got, reply["status"]) == (code, "refused")
    assert says in reply["detail"]
    assert len(reply["detail"]) < 500


@pytest.mark.parametrize("name", [n for n in HOSTILE if n != "too many bytes"])
async def test_a_hostile_picture_is_refused(client: SearchClient, name: str) -> None:
    reply = await client.image(HOSTILE[name])
    assert (reply.status, reply.hits) == ("refused", [])


@settings(max_examples=examples(150))
@given(
    st.sampled_from(["/v1/search/text", "/v1/search/image", "/v1/read", "/v1/summarise", "/retrieve"]),
    st.dictionaries(
        st.sampled_from(["query", "k", "image_base64", "url", "text", "queries", "topk", "return_scores", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers(-9, 60) | st.text(max_size=8) | st.just("R0lGODlh"),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=4,
        ),
        max_size=4,
    ),
)
def test_no_json_brings_it_down(server: Service, path: str, body: dict[str, Any]) -> None:
    code, reply = post(server, path, body)
    assert code in (200, 400)
    if path != "/retrieve" or code != 200:
        assert reply["status"] in ("ok", "empty", "refused")


def test_half_a_request_holds_nobody_up(server: Service) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as s:
        s.sendall(b"POST /v1/search/text HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{")
        assert post(server, "/v1/search/text", {"query": "zurimo"})[0] == 200


# -------------------------------------------------------------------------------------------------------- without pictures
async def test_a_corpus_without_pictures_refuses_image_search(tmp_path: Path) -> None:
    cfg = SearchConfig(corpus=str(write_corpus(tmp_path / "w")))
    with launch(cfg, cache_path=None, log=tmp_path / "log") as server:
        async with SearchClient(server.url) as client:
            assert (await client.text("zurimo")).status == "ok"
            reply = await client.image(png(write_images(tmp_path / "p", 1)[0]))
            assert (reply.status, "images.jsonl" in reply.detail) == ("refused", True)
