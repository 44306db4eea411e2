"""live, record, replay, replay-strict, through the whole server: what a recording gave to a call, a replay gives it again."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from search_app import PlayedImage, PlayedReader, PlayedText, Serving, serving
from search_fixtures import url, write_corpus, write_images
from vendors import jina, searxng
from vendors.server import Asked, Reply, Vendor

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.interfaces import ImageResult, Page, SearchFailure, TextResult
from megatron_mmsr1.search.client import SearchClient
from megatron_mmsr1.search.server.app import build_app
from megatron_mmsr1.search.server.calls import Caller, Calls
from megatron_mmsr1.search.server.compose import Backends, Replayed
from megatron_mmsr1.search.server.metrics import Metrics
from megatron_mmsr1.search.store.cache import Cache
from megatron_mmsr1.search.store.store import Store
from megatron_mmsr1.search.upstream.ledger import Account
from megatron_mmsr1.search.wire import TextReply
from megatron_mmsr1.trajectory import ToolStatus


class Web:
    """A SearXNG that finds `results` pages for any query, a Reader for them; each may be struck: engine, page, or all words."""

    def __init__(self) -> None:
        self.results, self.down, self.dead, self.blank = 3, False, set[str](), False

    def search(self, asked: Asked) -> Reply:
        if self.down:
            return searxng.html(500, "down")
        q = asked.query["q"]
        snippet = "" if self.blank else f"about {q}"
        rows = [{"url": f"http://x.test/{q}/{i}", "title": f"{q} {i}", "content": snippet} for i in range(self.results)]
        return searxng.page([] if q == "nothing" else rows)

    def read(self, asked: Asked) -> Reply:
        page = asked.target[1:]
        if any(part in page for part in self.dead):
            return jina.error(500, "oops")
        return jina.page(page, f"title of {page}", "" if self.blank else f"{page} says a lot. It says it well.")


@pytest.fixture
def web() -> Web:
    return Web()


@pytest.fixture
def live(web: Web) -> Any:
    with Vendor(web.search) as engine, Vendor(web.read) as reader:
        tries = {"retries": 0, "breaker_failures": 1000}
        sections = {
            "text": {"backend": "searxng", "url": engine.url, "spare": 0, **tries},
            "read": {"backend": "jina", "url": reader.url, **tries},
        }
        yield engine, reader, sections


def cfg(mode: str, sections: dict[str, Any] | None = None, **more: Any) -> SearchConfig:
    return SearchConfig.model_validate({"mode": mode, **(sections or {}), **more})


def seen(reply: TextReply) -> Any:
    """All that a model can see of it."""
    return reply.status, reply.degraded, reply.hits


async def count(server: Serving, name: str) -> Any:
    async with SearchClient(server.url) as client:
        return (await client.stats())[name]


# ---------------------------------------------------------------------------------------- what a call met, it meets again
async def test_each_call_gets_again_what_it_got(web: Web, live: Any, tmp_path: Path) -> None:
    engine, reader, sections = live
    store = tmp_path / "s.sqlite"
    got: dict[tuple[str, str], TextReply] = {}
    async with serving(cfg("record", sections), store) as server, SearchClient(server.url, retries=0) as client:

        async def ask(call: str, query: str) -> TextReply:
            got[call, query] = reply = await client.text(query, 3, call=call)
            return reply

        assert (await ask("whole", "a")).status == "ok"
        assert (await ask("empty", "nothing")).status == "empty"
        web.down = True
        assert (await ask("failed", "b")).status == "upstream_error"
        assert (await ask("again", "c")).status == "upstream_error"
        assert (await ask("worse", "d")).status == "upstream_error"
        web.down = False
        assert (await ask("again", "c")).status == "ok"  # asked again, as behind the rollout's throttle
        assert (await ask("other", "b")).status == "ok"
        web.dead = {"/1"}
        assert seen(await ask("worse", "d"))[:2] == ("ok", True)
        assert (len((await ask("part", "e")).hits), got["part", "e"].degraded) == (2, True)
        web.dead = {"http"}
        assert [h.summary for h in (await ask("snippets", "f")).hits] == ["about f"] * 3
        web.dead = set()
        assert seen(await ask("healed", "e"))[:2] == ("ok", False)
        web.blank = True
        assert (await ask("blank", "g")).status == "empty"  # pages there were, and not a word on any
        web.blank = False
        # The name alone does not make a call: here another query has it.
        assert (await ask("part", "h")).degraded is False
    file, asked = store.read_bytes(), len(engine.requests) + len(reader.requests)

    # Neither URL nor corpus nor key, and other names: nothing but the file.
    async with serving(cfg("replay-strict"), store) as server, SearchClient(server.url, retries=0) as client:
        together = await asyncio.gather(*(client.text(q, 3, call=c) for c, q in got))
        alone = [await client.text(q, 3, call=c) for c, q in got]
        for (call, _), reply, a, b in zip(got, got.values(), together, alone, strict=True):
            assert seen(a) == seen(b) == seen(reply), call
            assert a.cached and b.cached and (a.detail == reply.detail)
        # Whoever has no name, or another, gets what everyone gets.
        for call in ("", "another"):
            assert seen(await client.text("e", 3, call=call)) == seen(got["healed", "e"])
        assert seen(await client.text("h", 3)) == seen(got["part", "h"])
        assert await count(server, "replay_misses") == 0
        missed = await client.text("f", 3, call="another")
        assert missed.status == "upstream_error" and "the snapshot does not hold it" in missed.detail
        assert await count(server, "replay_misses") == 1
    assert store.read_bytes() == file
    assert len(engine.requests) + len(reader.requests) == asked
    assert {p.name for p in tmp_path.iterdir()} <= {"s.sqlite", "s.sqlite.ledger", "s.sqlite-wal", "s.sqlite-shm"}


async def test_in_live_nothing_is_kept_of_a_failure(web: Web, live: Any, tmp_path: Path) -> None:
    store = tmp_path / "s.sqlite"
    async with serving(cfg("live", live[2]), store) as server, SearchClient(server.url, retries=0) as client:
        web.down = True
        assert (await client.text("a", call="c")).status == "upstream_error"
        web.down, web.dead = False, {"/0"}
        assert (await client.text("a", call="c")).degraded
        assert set((await client.stats())["snapshot"]["entries"]) == {"search", "page"}


@pytest.mark.parametrize("kind", ["record", "live"])
async def test_replay_goes_out_for_what_is_missing_and_keeps_nothing(kind: str, web: Web, live: Any, tmp_path: Path) -> None:
    engine, _, sections = live
    store = tmp_path / "s.sqlite"
    async with serving(cfg(kind, sections), store) as server, SearchClient(server.url) as client:
        first = await client.text("a")
    file, asked = store.read_bytes(), len(engine.requests)
    async with serving(cfg("replay", sections), store) as server, SearchClient(server.url, retries=0) as client:
        assert seen(await client.text("a")) == seen(first)
        assert (len(engine.requests), await count(server, "replay_misses")) == (asked, 0)
        for n in (1, 2):
            assert (await client.text("new", call="c")).status == "ok"
            assert len(engine.requests) == asked + n
        assert await count(server, "replay_misses") > 0
        web.down = True
        assert (await client.text("newer", call="c")).status == "upstream_error"
    assert store.read_bytes() == file


async def test_a_recording_of_a_local_corpus_needs_no_corpus(tmp_path: Path) -> None:
    """Every endpoint of it: also those that ask one part alone."""
    directory = write_corpus(tmp_path / "w")
    write_images(directory, 4)
    picture = (directory / "images" / "2.png").read_bytes()
    store = tmp_path / "s.sqlite"
    replies: list[list[Any]] = []
    for c in (cfg("record", corpus=str(directory)), cfg("replay-strict")):
        async with serving(c, store) as server, SearchClient(server.url) as client, aiohttp.ClientSession() as session:
            said: list[Any] = [await client.text("zurimo capital"), await client.text("qoxzu"), await client.image(picture)]
            said += [await client.read(url("zurimo")), await client.summarise("capital", "The capital is belato. It rains.")]
            said += [await client.read(url("nowhere"), call="r")]
            async with session.post(f"{server.url}/retrieve", json={"queries": ["zurimo river", "qoxzu"]}) as r:
                assert r.status == 200
                replies.append([*(s.model_dump(exclude={"seconds", "cached"}) for s in said), await r.json()])
        assert [r["status"] for r in replies[-1][:-1]] == ["ok", "empty", "ok", "ok", "ok", "empty"]
    assert replies[0] == replies[1]


# ------------------------------------------------------------------------------------------------- the same, in general
class Chance:
    """Backends that fail as they are told, call by call."""

    def __init__(self) -> None:
        self.luck = ""

    async def text(self, query: str, k: int) -> list[TextResult]:
        if self.luck == "fail":
            raise SearchFailure(ToolStatus.TIMEOUT, "late")
        return [TextResult(f"http://x.test/{query}/{i}", "t", "snippet" * (self.luck != "blank")) for i in range(k)]

    async def read(self, page: str) -> Page:
        if self.luck == "blank" or (self.luck == "part" and page.endswith("/0")):
            raise SearchFailure(ToolStatus.EMPTY if self.luck == "blank" else ToolStatus.RATE_LIMITED, "not now")
        return Page(page, "t", f"words of {page}")

    async def image(self, data: bytes, k: int) -> list[ImageResult]:
        if self.luck != "well":
            raise SearchFailure(ToolStatus.EMPTY if self.luck == "blank" else ToolStatus.UPSTREAM_ERROR, self.luck)
        return [ImageResult("http://x.test", "t", data)]


CALL = st.tuples(
    st.sampled_from(["text", "image"]),
    st.sampled_from(["c1", "c2", "c3"]),
    st.sampled_from(["YQ==", "Yg==", "Yw=="]),
    st.sampled_from(["well", "fail", "part", "blank"]),
)


@settings(max_examples=examples(60))
@given(st.lists(CALL, min_size=1, max_size=12))
def test_the_last_answer_of_every_call_is_the_one_that_is_replayed(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[str, str, str, str]]
) -> None:
    path = tmp_path_factory.mktemp("s") / "s.sqlite"
    chance = Chance()
    real = Backends(PlayedText("t", chance.text), PlayedImage("i", chance.image), PlayedReader("r", chance.read), None)
    gone = Backends(Replayed("t", "1", False), Replayed("i", "1", False), PlayedReader("r", chance.read), None)

    async def answers(mode: Any, backends: Backends, asked: list[tuple[str, str, str, str]]) -> dict[Any, Any]:
        store = Store(path) if mode == "record" else Store.open_readonly(path)
        running = Calls(SearchConfig(), backends, Cache(store, mode), Metrics())
        got = {}
        for op, call, what, chance.luck in asked:
            body = {"query": what, "k": 2} if op == "text" else {"image_base64": what}
            reply = await running.answer(op, body, Caller(Account(), call))
            parts = ("status", "detail", "hits", "degraded", "backend")
            got[op, call, what] = orjson.loads(orjson.dumps({k: reply[k] for k in parts if k in reply}))
        await running.cache.close()
        return got

    recorded = asyncio.run(answers("record", real, calls))
    again = [(op, call, what, "gone") for op, call, what in recorded]
    assert asyncio.run(answers("replay-strict", gone, again)) == recorded


# ---------------------------------------------------------------------------------------------------- the snapshot's name
async def page(server: Serving, path: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(server.url + path) as r:
        assert (r.status, r.content_type) == (200, "application/json")
        return await r.json()


async def test_the_snapshots_name_and_the_servers_account(live: Any, tmp_path: Path) -> None:
    _, _, sections = live
    store = tmp_path / "s.sqlite"
    async with serving(cfg("record", sections, budget={"run_calls": 99}), store) as server:
        async with SearchClient(server.url, run="a run", step=3) as client:
            empty = await page(server, "/v1/snapshot")
            assert (empty["mode"], empty["entries"]) == ("record", {})
            await client.text("a")
            one = await page(server, "/v1/snapshot")
            await client.text("a")
            assert await page(server, "/v1/snapshot") == one != empty
            await client.text("b")
            two = await page(server, "/v1/snapshot")
        assert len({empty["id"], one["id"], two["id"]}) == 3
        assert one["entries"] == {"page": 3, "search": 1, "summary": 3, "text": 1}
        names = {k: (b["name"], b["local"]) for k, b in one["backends"].items()}
        assert names == {"text": ("searxng", False), "read": ("jina", False), "summarise": ("extractive", True)}

        stats = await page(server, "/v1/stats")
        assert (stats["mode"], stats["in_flight"], stats["snapshot"]["id"]) == ("record", 0, two["id"])
        assert (stats["calls"]["text"], stats["cache_hits"]["text"]) == ({"ok": 3}, 1)
        assert {n: u["statuses"] for n, u in stats["upstreams"].items()} == {"searxng": {"ok": 2}, "jina": {"ok": 6}}
        assert stats["budget"] == {"run_calls": 99}
        spent = {(r["run"], r["backend"]): r["calls"] for r in stats["spend"]}
        assert spent == {("a run", "searxng"): 2, ("a run", "jina"): 6}
    for mode in ("replay", "replay-strict"):
        async with serving(cfg(mode, sections), store) as server, SearchClient(server.url, retries=0) as client:
            for query in ("a", "b", "new"):
                await client.text(query, call="c")
                now = await page(server, "/v1/snapshot")
                assert (now["mode"], now["id"], now["backends"]) == (mode, two["id"], two["backends"])


async def test_without_a_store_there_is_no_name(tmp_path: Path) -> None:
    async with serving(cfg("live", corpus=str(write_corpus(tmp_path)))) as server:
        assert (await page(server, "/v1/snapshot"))["id"] is None


# ------------------------------------------------------------------------------------------------------ what is said of it
def says(c: SearchConfig, path: Path | None) -> str:
    with pytest.raises(UsageError) as e:
        build_app(c, path)
    return str(e.value)


async def test_modes_that_cannot_be(live: Any, tmp_path: Path) -> None:
    _, _, sections = live
    for mode in ("record", "replay", "replay-strict"):
        assert "search.cache" in says(cfg(mode, sections), None)
    for mode in ("replay", "replay-strict"):
        assert all(s in says(cfg(mode, sections), tmp_path / "none") for s in (f"search.mode={mode}", str(tmp_path / "none")))
    Store(tmp_path / "bare").close()
    assert "does not say which backends" in says(cfg("replay-strict"), tmp_path / "bare")

    store = tmp_path / "s.sqlite"
    async with serving(cfg("record", sections), store):
        pass
    for kind, name in (("text", "serper"), ("read", "trafilatura"), ("summarise", "openai"), ("image", "descriptor")):
        said = says(cfg("replay-strict", {kind: {"backend": name, "url": "http://h:1"}}), store)
        held = {"text": "searxng", "read": "jina", "summarise": "extractive", "image": "none"}[kind]
        assert all(s in said for s in (f"search.{kind}.backend={name}", f"recorded with {held}", str(store)))
    build_app(cfg("replay-strict", sections), store)  # as it was recorded
    build_app(cfg("replay-strict"), store)  # or whatever it was


async def test_a_recording_that_cannot_be_kept_is_said_in_every_call(web: Web, live: Any, tmp_path: Path) -> None:
    store = tmp_path / "s.sqlite"
    async with serving(cfg("record", live[2]), store) as server, SearchClient(server.url, retries=0) as client:
        kept = await client.text("a", call="a")
        with sqlite3.connect(store) as other:
            other.execute("ALTER TABLE contents RENAME TO gone")
        other.close()
        reply = await client.text("b", call="b")
        assert reply.status == "upstream_error" and "could not be recorded" in reply.detail and not reply.hits
        web.down = True
        reply = await client.text("c", call="c")
        assert reply.status == "upstream_error" and "could not be recorded" in reply.detail
        stats = await client.stats()
        assert kept.status == "ok" and stats["store_errors"] > 0


async def test_a_snapshot_that_cannot_be_read_is_no_empty_one(live: Any, tmp_path: Path) -> None:
    store = tmp_path / "s.sqlite"
    async with serving(cfg("record", live[2]), store) as server, SearchClient(server.url) as client:
        await client.text("a", call="a")
    async with serving(cfg("replay-strict"), store) as server, SearchClient(server.url, retries=0) as client:
        assert (await client.text("a", call="a")).status == "ok"
        with sqlite3.connect(store) as other:
            other.execute("ALTER TABLE contents RENAME TO gone")
        other.close()
        reply = await client.text("a", call="a")
        assert (reply.status, "cannot be read" in reply.detail) == ("upstream_error", True)
