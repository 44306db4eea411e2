"""How a client's calls travel: together where they are made together, each with an outcome of its own whatever happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from search_app import PlayedText, Serving, serving
from vendors.server import Asked, Reply, Vendor, answer, in_turn

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.search import client as client_module
from megatron_mmsr1.search.backends.interfaces import TextResult
from megatron_mmsr1.search.batching import MAX_BYTES, MAX_CALLS
from megatron_mmsr1.search.client import SearchClient
from megatron_mmsr1.search.server.compose import Backends
from megatron_mmsr1.search.upstream.ledger import Account, account
from megatron_mmsr1.search.wire import TextReply

BATCH = "/v1/batch"


def hits(query: str) -> dict[str, Any]:
    found = [] if query == "image" else [{"link": query, "summary": "s", "title": "t"}]
    return {"status": "ok", "hits": found}


def lines(asked: Asked, each: Callable[[int, str], bytes] | None = None) -> Reply:
    """A batch's answer, last call first; or a lone call's."""
    said = asked.json()
    if asked.path != BATCH:
        return answer(hits(said.get("query", "image")))

    def well(place: int, query: str) -> bytes:
        return b"%d 200 %b\n" % (place, json.dumps(hits(query)).encode())

    rows = [(each or well)(n, c["body"].get("query", "image")) for n, c in enumerate(said["calls"])]
    return Reply(b"".join(reversed(rows)), 200, {"content-type": "text/plain"})


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BACKOFF_S", 0.0)


async def texts(client: SearchClient, n: int) -> list[TextReply]:
    return list(await asyncio.gather(*(client.text(f"q{i}") for i in range(n))))


def links(replies: list[TextReply]) -> list[str]:
    return [r.hits[0].link if r.hits else r.status.value for r in replies]


# ---------------------------------------------------------------------------------------------------------------- together
@pytest.mark.parametrize(("n", "wants"), [(1, ["/v1/search/text"]), (2, [BATCH]), (MAX_CALLS, [BATCH]), (200, [BATCH] * 4)])
async def test_calls_of_one_turn_are_one_request(n: int, wants: list[str]) -> None:
    async with Vendor(lines) as v, SearchClient(v.url) as client:
        assert links(await texts(client, n)) == [f"q{i}" for i in range(n)]
        assert [r.path for r in v.requests] == wants
        assert all(len(r.json()["calls"]) <= MAX_CALLS for r in v.requests if r.path == BATCH)


async def test_calls_of_different_turns_are_not_held_back_for_each_other() -> None:
    async with Vendor(lines, latency=0.2) as v, SearchClient(v.url) as client:
        first = asyncio.create_task(client.text("a"))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, client.text("b"))
        assert [r.path for r in v.requests] == ["/v1/search/text"] * 2 and v.peak == 2


async def test_a_batch_is_bounded_in_bytes() -> None:
    async with Vendor(lines) as v, SearchClient(v.url) as client:
        replies = await asyncio.gather(*(client.image(bytes([i]) * 300_000) for i in range(7)), client.text("q"))
        assert {r.status for r in replies} == {"ok"}
        sizes = [len(r.body) for r in v.requests]
    assert len(sizes) == 4 and max(sizes) < MAX_BYTES + 10_000


async def test_an_image_that_is_more_than_a_batch_holds_goes_alone() -> None:
    async with Vendor(lines) as v, SearchClient(v.url) as client:
        replies = await asyncio.gather(client.text("a"), client.text("b"), client.image(b"x" * MAX_BYTES), client.text("c"))
        assert {r.status for r in replies} == {"ok"}
        assert sorted(r.path for r in v.requests) == ["/v1/batch", "/v1/search/image", "/v1/search/text"]


async def test_runs_and_steps_travel_apart() -> None:
    async with Vendor(lines) as v, SearchClient(v.url, run="läufe #1", step=1) as client:

        async def at(step: int, query: str) -> TextReply:
            client.step = step
            return await client.text(query)

        assert links(await asyncio.gather(*(at(n // 3, f"q{n}") for n in range(9)))) == [f"q{i}" for i in range(9)]
        sent = {r.headers["x-mmsr1-step"]: [c["body"]["query"] for c in r.json()["calls"]] for r in v.requests}
        names = {r.headers["x-mmsr1-run"] for r in v.requests}
    assert sent == {"0": ["q0", "q1", "q2"], "1": ["q3", "q4", "q5"], "2": ["q6", "q7", "q8"]}
    assert names == {"l%C3%A4ufe%20%231"}


NAMES = ["", "3/7/p#0@1.1", "a b", "lä", "x" * 5000, "a\r\nx-evil: 1", " padded ", "\ud800", "tab\t", '"quoted"', "%41"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
async def test_a_calls_name_is_the_same_on_every_road(name: str) -> None:
    """By it a recording is found again: alone in a header, or in a batch's JSON; and no name may harm its neighbours."""
    async with Vendor(lines) as v, SearchClient(v.url, run=name) as client:
        alone = await client.text("a", call=name)
        together = await asyncio.gather(client.text("b", call=name), client.text("c", call="other"))
        assert links([alone, *together]) == ["a", "b", "c"]
        lone, batch = v.requests
        assert lone.headers.get("x-mmsr1-call", "") == batch.json()["calls"][0]["call"]
        assert "x-evil" not in lone.headers and len(batch.json()["calls"][0]["call"]) <= 512
        assert bool(name) == bool(batch.json()["calls"][0]["call"])
        assert lone.headers["x-mmsr1-run"] == batch.headers["x-mmsr1-run"]


def test_names_that_differ_stay_different() -> None:
    names = [*NAMES, "x" * 5000 + "y", "l\u0061\u0308", "padded"]
    assert len({client_module._wire_id(n) for n in names}) == len(names)


# --------------------------------------------------------------------------------------------------------------- misbehaving
def broken_line(line: bytes) -> Callable[[Asked], Reply]:
    """Call 1 of a batch gets `line`; the others are answered."""

    def each(place: int, query: str) -> bytes:
        return line if place == 1 else b"%d 200 %b\n" % (place, json.dumps(hits(query)).encode())

    return lambda asked: lines(asked, each)


WHOLE = {
    "429": (answer({"status": "rate_limited"}, 429), "rate_limited", 3),
    "429 at once": (answer({}, 429, retry_after="0"), "rate_limited", 3),
    "503": (answer({"status": "upstream_error"}, 503), "upstream_error", 3),
    "500": (answer([], 500), "upstream_error", 3),
    "400": (answer({"detail": "calls: no"}, 400), "refused", 1),
    "413": (answer({}, 413), "refused", 1),
    "404": (Reply(b"<html>", 404), "refused", 1),
    "301": (answer({}, 301, location="/"), "refused", 1),
    "dropped": (Reply(wire="dropped"), "upstream_error", 3),
    "nothing": (Reply(b""), "upstream_error", 3),
    "a page": (Reply(b"<html>\n</html>\n"), "upstream_error", 3),
    "no newline": (Reply(b"0 200 {}"), "upstream_error", 3),
    "binary": (Reply(bytes(range(256)) * 100), "upstream_error", 3),
    "binary with code 0": (Reply(b"0 0 \xff\xfe\n1 0 \xff\n2 0 \xff\n"), "upstream_error", 3),
    "no JSON": (Reply(b"".join(b"%d 200 {\n" % i for i in range(3))), "upstream_error", 1),
    "empty JSON": (Reply(b"".join(b"%d 200 {}\n" % i for i in range(3))), "upstream_error", 1),
    "a place beyond": (Reply(b"99 200 {}\n"), "upstream_error", 3),
    "a code beyond": (Reply(b"".join(b"%d 999999999999999999999 {}\n" % i for i in range(3))), "upstream_error", 1),
    "truncated": (Reply(b"0 200 " + b"x" * 1000, wire="truncated"), "upstream_error", 3),
}


@pytest.mark.parametrize("name", WHOLE)
async def test_a_batch_that_fails_is_each_calls_failure_and_tried_again(name: str) -> None:
    reply, status, tries = WHOLE[name]
    async with Vendor(lambda _: reply) as v, SearchClient(v.url, timeout_s=20) as client:
        replies = await texts(client, 3)
        assert {r.status for r in replies} == {status} and all(r.detail and not r.hits for r in replies)
        assert len(v.requests) == tries


@pytest.mark.parametrize("name", [n for n, (_, _, tries) in WHOLE.items() if tries > 1])
async def test_the_next_try_may_be_answered(name: str) -> None:
    async with Vendor(in_turn(WHOLE[name][0], lines)) as v, SearchClient(v.url) as client:
        assert links(await texts(client, 3)) == ["q0", "q1", "q2"]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"", "q1"),  # not a word of it: asked again, alone
        (b"1 500 {}\n", "q1"),
        (b"1 503 {}\n", "q1"),
        (b"1 400 {}\n", "refused"),
        (b'1 200 {"status":"timeout","detail":"slow"}\n', "timeout"),
        (b"1 200 {\n", "upstream_error"),
        (b"1 -7 {}\n", "refused"),
    ],
)
async def test_one_bad_line_is_one_calls_affair(line: bytes, status: str) -> None:
    async with Vendor(broken_line(line)) as v, SearchClient(v.url) as client:
        assert links(await texts(client, 3)) == ["q0", status, "q2"]
        again = status == "q1"
        assert [r.path for r in v.requests] == [BATCH] + ["/v1/search/text"] * again


async def test_a_429_in_a_batch_waits_before_it_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def spy(s: float) -> None:
        waits.append(s)
        await sleep(0)

    monkeypatch.setattr(client_module.asyncio, "sleep", spy)
    async with Vendor(in_turn(broken_line(b"1 429 {}\n"), lines)) as v, SearchClient(v.url) as client:
        assert links(await texts(client, 3)) == ["q0", "q1", "q2"]
    assert waits == [1.0]


async def test_a_stream_that_breaks_off_keeps_what_it_brought() -> None:
    def half(asked: Asked) -> Reply:
        whole = lines(asked)
        return Reply(whole.body + b"x" * len(whole.body), 200, whole.headers, "truncated")  # sends the first half

    async with Vendor(in_turn(half, Reply(wire="dropped"))) as v, SearchClient(v.url) as client:
        assert links(await texts(client, 5)) == [f"q{i}" for i in range(5)]
        assert len(v.requests) == 1


async def test_a_server_that_dies_and_comes_back_on_its_port() -> None:
    async with Vendor(lines) as v, SearchClient(v.url, retries=2) as client:
        assert links(await texts(client, 5)) == [f"q{i}" for i in range(5)]
        v.kill()
        assert links(await texts(client, 5)) == ["upstream_error"] * 5
        v.revive()
        assert links(await texts(client, 5)) == [f"q{i}" for i in range(5)]
        v.handler = lambda _: Reply(wire="silent")
        waiting = [asyncio.create_task(client.text(f"q{i}")) for i in range(5)]
        while v.in_flight == 0:
            await asyncio.sleep(0.01)
        v.handler = lines
        v.kill()
        v.revive()
        assert links(await asyncio.gather(*waiting)) == [f"q{i}" for i in range(5)]


async def test_a_closed_client_leaves_nobody_waiting() -> None:
    async with Vendor(lambda _: Reply(wire="silent")) as v:
        client = SearchClient(v.url, retries=0)
        waiting = [asyncio.create_task(client.text(f"q{i}")) for i in range(5)]
        while v.in_flight == 0:
            await asyncio.sleep(0.01)
        await client.close()
        assert {r.status for r in await asyncio.gather(*waiting)} == {"upstream_error"}


# ------------------------------------------------------------------------------------------------- with the real server's app
class Slow:
    """A text backend that answers at once, but queries with "slow" in them when `go` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.who: list[Account] = []
        self.backend = PlayedText("t", self.search)

    async def search(self, query: str, k: int) -> list[TextResult]:
        self.who.append(account.get())
        if "slow" in query:
            await self.go.wait()
        return [TextResult(query, "t", "s")]


@pytest.fixture
async def slow() -> Slow:
    return Slow()


@pytest.fixture
async def server(slow: Slow) -> AsyncIterator[Serving]:
    async with serving(SearchConfig(), None, Backends(slow.backend, None, None, None)) as s:
        yield s
        slow.go.set()


async def test_the_time_out_of_one_call_leaves_the_others(server: Serving, slow: Slow) -> None:
    async with SearchClient(server.url, timeout_s=20) as patient, SearchClient(server.url, timeout_s=0.3) as hasty:
        replies = await asyncio.gather(*(hasty.text(q) for q in ("a", "slow b", "c")))
        assert links(list(replies)) == ["a", "timeout", "c"]
        mine = [asyncio.create_task(patient.text(f"slow {i}")) for i in range(3)]
        await asyncio.sleep(0.2)
        mine[1].cancel()
        slow.go.set()
        got = await asyncio.gather(*mine, return_exceptions=True)
    assert isinstance(got[1], asyncio.CancelledError)
    assert [g.hits[0].link for g in got if isinstance(g, TextReply)] == ["slow 0", "slow 2"]


@pytest.mark.parametrize("answered", [0, 1, 5])
async def test_nobody_who_waits_is_no_request(server: Serving, answered: int) -> None:
    """Also where some of the batch got their answers before the rest was given up."""
    async with SearchClient(server.url, timeout_s=20) as client:
        quick = [asyncio.create_task(client.text(f"q{i}")) for i in range(answered)]
        calls = [asyncio.create_task(client.text(f"slow {i}")) for i in range(5)]
        await asyncio.gather(*quick)
        while server.calls.in_flight < 5:
            await asyncio.sleep(0.01)
        for c in calls[1:]:
            c.cancel()
        await asyncio.sleep(0.1)
        assert server.calls.in_flight == 5  # one of them still waits, and a batch is one request
        calls[0].cancel()
        await server.until_idle()


async def test_a_call_that_is_given_up_at_once_is_not_sent(server: Serving, slow: Slow) -> None:
    async with SearchClient(server.url) as client:
        calls = [asyncio.create_task(client.text(f"q{i}")) for i in range(3)]
        await asyncio.sleep(0)  # they have asked, and nothing was sent yet
        calls[0].cancel()
        calls[2].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert slow.backend.asked == ["q1"]


async def test_the_runs_name_reaches_the_ledger_as_it_is(server: Serving, slow: Slow) -> None:
    name = "läufe/#1 ü%41\n"
    async with SearchClient(server.url, run=name, step=4) as client:
        await client.text("a")
        await asyncio.gather(client.text("b"), client.text("c"))
    assert set(slow.who) == {Account(name, 4)}
