"""POST /v1/batch on a real socket: what becomes of one call is its own affair. (The client: test_search_batching.py.)"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from search_app import Played, PlayedImage, PlayedReader, PlayedSummariser, PlayedText, Serving, serving

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.search import wire as requests
from megatron_mmsr1.search.backends.interfaces import ImageResult, Page, SearchFailure, TextResult
from megatron_mmsr1.search.server import calls as calls_module
from megatron_mmsr1.search.server.compose import Backends
from megatron_mmsr1.search.upstream.deadline import remaining
from megatron_mmsr1.search.upstream.ledger import Account, account
from megatron_mmsr1.trajectory import ToolStatus

Line = tuple[int, int, Any]


class World:
    """Backends that answer at once, but for queries with "slow" in them, which wait for `go`. `seen`: for each query the
    account that paid and the seconds that were left."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.seen: dict[str, tuple[Account, float]] = {}
        self.backends = Backends(
            PlayedText("t", self.text),
            PlayedImage("i", self.image),
            PlayedReader("r", self.read),
            PlayedSummariser("s", self.summarise),
        )

    async def text(self, query: str, k: int) -> list[TextResult]:
        self.seen[query] = (account.get(), remaining())
        if "slow" in query:
            await self.go.wait()
        if "broken" in query:
            raise ZeroDivisionError
        if "failing" in query:
            raise SearchFailure(ToolStatus.UPSTREAM_ERROR, "no luck")
        return [TextResult(f"http://x.test/{query}/{i}", f"title {i}", "snippet") for i in range(k)]

    async def image(self, data: bytes, k: int) -> list[ImageResult]:
        return [ImageResult("http://x.test", f"{len(data)} bytes", data)]

    async def read(self, url: str) -> Page:
        # A reader that does not clean: half of a surrogate pair, which no UTF-8 can carry.
        return Page(url, "\ud800" if "surrogate" in url else "page", f"text of {url}")

    async def summarise(self, what: tuple[str, str]) -> str:
        return f"{what[1]} on {what[0]}"


@pytest.fixture
async def world() -> World:
    return World()


@pytest.fixture
async def server(world: World) -> AsyncIterator[Serving]:
    async with serving(SearchConfig(deadline_s=20), None, world.backends) as s:
        yield s
        world.go.set()


def text(query: str, k: int = 2, **more: Any) -> dict[str, Any]:
    return {"op": "text", "body": {"query": query, "k": k}, **more}


@asynccontextmanager
async def posted(server: Serving, calls: Any, **headers: str) -> AsyncIterator[aiohttp.ClientResponse]:
    data = calls if isinstance(calls, bytes) else json.dumps({"calls": calls}).encode()
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.post(f"{server.url}/v1/batch", data=data, headers=headers) as r,
    ):
        yield r


def parsed(line: bytes) -> Line:
    place, code, body = line.rstrip(b"\n").split(b" ", 2)
    return int(place), int(code), json.loads(body)


async def batch(server: Serving, calls: Any, **headers: str) -> dict[int, tuple[int, Any]]:
    """Each call's answer by its place, which must be there once."""
    async with posted(server, calls, **headers) as r:
        assert r.status == 200
        lines = [parsed(line) async for line in r.content]
    got = {place: (code, body) for place, code, body in lines}
    assert len(got) == len(lines) == len(calls) and set(got) == set(range(len(calls)))
    return got


# ------------------------------------------------------------------------------------------------------------ each its own
async def test_each_call_gets_what_its_own_endpoint_says(server: Serving) -> None:
    picture = base64.b64encode(b"picture").decode()
    bodies: list[tuple[str, str, dict[str, Any]]] = [
        ("text", "/v1/search/text", {"query": "zurimo", "k": 3}),
        ("image", "/v1/search/image", {"image_base64": picture}),
        ("read", "/v1/read", {"url": "http://x.test/1"}),
        ("summarise", "/v1/summarise", {"query": "q", "text": "t"}),
        ("text", "/v1/search/text", {"query": "failing"}),
        ("text", "/v1/search/text", {"query": ""}),
        ("text", "/v1/search/text", {"query": "x", "k": 0}),
        ("text", "/v1/search/text", {"queri": "x"}),
        ("image", "/v1/search/image", {"image_base64": "%"}),
        ("read", "/v1/read", {}),
    ] * 20
    got = await batch(server, [{"op": op, "body": body} for op, _, body in bodies])
    async with aiohttp.ClientSession() as session:
        for place, (_, path, body) in enumerate(bodies[:10]):
            async with session.post(server.url + path, json=body) as r:
                alone = await r.json()
            for code, together in (got[place], got[place + 190]):
                assert code == r.status
                for said in (alone, together):
                    assert (said.pop("seconds", 0.0) >= 0, said.pop("cached", False) in (True, False)) == (True, True)
                assert together == alone
    assert {code for code, _ in got.values()} == {200, 400}


async def test_a_slow_call_holds_nobody_up(server: Serving, world: World) -> None:
    calls = [text("slow") if i % 10 == 0 else text(f"q{i}") for i in range(100)]
    async with posted(server, calls) as r:
        first = [parsed(await r.content.readline()) for _ in range(90)]
        assert all(place % 10 and code == 200 for place, code, _ in first)
        assert server.calls.in_flight == 10
        world.go.set()
        rest = [parsed(line) async for line in r.content]
    assert {p for p, _, _ in [*first, *rest]} == set(range(100)) and len(rest) == 10
    assert sum(not body["cached"] for _, _, body in rest) == 1  # one flight for the ten of them
    assert len([q for q in asked(world.backends.text) if q == "slow"]) == 1


def asked(backend: Any) -> list[Any]:
    assert isinstance(backend, Played)
    return backend.asked


@pytest.mark.parametrize("bad", [text("broken"), {"op": "read", "body": {"url": "http://surrogate.test"}}])
async def test_a_defect_costs_its_call_only(server: Serving, bad: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A backend's bug, and a reply that cannot be written down: both are 500, logged, and neither leaves anybody waiting."""
    got = await batch(server, [text("a"), bad, text("b")])
    assert [got[i][0] for i in range(3)] == [200, 500, 200]
    assert (got[1][1]["status"], "log" in got[1][1]["detail"]) == ("upstream_error", True)
    assert "Traceback" in caplog.text and server.calls.in_flight == 0


async def test_a_flight_that_is_cancelled_is_an_answer_too(server: Serving) -> None:
    async with posted(server, [text("slow"), text("a")]) as r:
        assert parsed(await r.content.readline())[:2] == (1, 200)
        for flight in server.calls.cache._flying.values():
            flight.task.cancel()
        place, code, body = parsed(await r.content.readline())
        assert (place, code, body["status"]) == (0, 200, "upstream_error")


async def test_who_pays_and_until_when_is_each_calls_own(server: Serving, world: World) -> None:
    """Batches of two runs at once, and one without a name: no call sees another's account or its clock."""

    async def of(run: str, step: int) -> None:
        headers = {} if not run else {"x-mmsr1-run": run, "x-mmsr1-step": str(step)}
        await batch(server, [text(f"{run} {step} {i}") for i in range(50)], **headers)

    await asyncio.gather(*(of(run, step) for run in ("a", "b", "") for step in (1, 2)))
    assert {account.get()} == {Account()}
    assert len(world.seen) == 300
    for query, (who, left) in world.seen.items():
        run, step, _ = query.rsplit(" ", 2) if query[0] in "ab" else ("", "-1", "")
        assert who == Account(run, int(step))
        assert 0 < left <= 0.4 * 20 + 1e-6  # the search's share of the deadline


async def test_a_runs_name_may_be_anything(server: Serving, world: World) -> None:
    await batch(server, [text("q1")], **{"x-mmsr1-run": "l%C3%A4ufe%2F%231%20", "x-mmsr1-step": "3"})
    assert world.seen["q1"][0] == Account("läufe/#1 ", 3)
    async with posted(server, [text("q2")], **{"x-mmsr1-step": "three"}) as r:
        assert r.status == 400 and "x-mmsr1-step" in await r.text()


# ---------------------------------------------------------------------------------------------------------------- going away
async def test_who_goes_away_ends_its_calls_and_nobody_elses(server: Serving, world: World) -> None:
    stays = asyncio.create_task(batch(server, [text("slow shared")]))
    async with posted(server, [*(text(f"slow {i}") for i in range(50)), text("slow shared")]):
        while server.calls.in_flight < 52:
            await asyncio.sleep(0.01)
    while server.calls.in_flight > 1:  # the connection is gone, and with it 51 calls
        await asyncio.sleep(0.01)
    world.go.set()
    assert (await stays)[0][0] == 200
    assert (await batch(server, [text("slow 7")]))[0][1]["status"] == "ok"
    assert server.app._metrics.plain()["calls"]["text"] == {"ok": 2}  # who has gone was not answered, and nothing failed


async def test_a_reader_that_does_not_read_and_goes_away(server: Serving) -> None:
    """The answers wait in the socket, the batch in `send`: its end is noticed all the same."""
    big = base64.b64encode(b"x" * 300_000).decode()
    calls = [{"op": "image", "body": {"image_base64": big, "k": k}} for k in range(1, 31)]
    async with posted(server, [*calls, text("slow")]) as r:
        await r.content.readexactly(1)
        await asyncio.sleep(0.1)
    await server.until_idle()


async def test_a_server_that_is_told_to_end_finishes_its_batches(server: Serving, world: World) -> None:
    open_batch = asyncio.create_task(batch(server, [text("slow"), text("a")]))
    while server.calls.in_flight != 1:
        await asyncio.sleep(0.01)
    ending = asyncio.create_task(server.stop())
    await asyncio.sleep(0.3)
    assert not open_batch.done()
    world.go.set()
    assert {body["status"] for _, body in (await open_batch).values()} == {"ok"}
    await ending
    assert all(b.closed for b in world.backends.all() if isinstance(b, Played))


# ---------------------------------------------------------------------------------------------------------------------- caps
GARBAGE: list[tuple[bytes, int, str]] = [
    (b"", 400, "JSON"),
    (b"{", 400, "JSON"),
    (b"[]", 400, "object"),
    (b"{}", 400, "calls"),
    (b'{"calls":[]}', 400, "calls"),
    (b'{"calls":5}', 400, "calls"),
    (b'{"calls":[5]}', 400, "calls.0"),
    (b'{"calls":[{"op":"text"}]}', 400, "calls.0.body"),
    (b'{"calls":[{"op":"retrieve","body":{}}]}', 400, "calls.0.op"),
    (b'{"calls":[{"op":"text","body":{"query":"x"},"x":1}]}', 400, "calls.0.x"),
    (b'{"calls":[{"op":"text","body":"x"}]}', 400, "calls.0.body"),
    (b'{"calls":[{"op":"text","body":{"query":"\\ud800"}}]}', 400, ""),
    (b"\xff\xfe", 400, ""),
    (b"[" * 100_000, 400, ""),
    (json.dumps({"calls": [text("x", call="c" * 513)]}).encode(), 400, "calls.0.call"),
    (json.dumps({"calls": [text("x")] * (requests.MAX_BATCH + 1)}).encode(), 400, "calls"),
    (b"x" * (requests.MAX_BATCH_BYTES + 1), 413, "larger"),
]


@pytest.mark.parametrize(("data", "code", "says"), GARBAGE, ids=range(len(GARBAGE)))
async def test_what_is_no_batch_is_refused_whole(server: Serving, data: bytes, code: int, says: str) -> None:
    async with posted(server, data) as r:
        body = await r.json()
    assert (r.status, body["status"]) == (code, "refused")
    assert says in body["detail"] and len(body["detail"]) < 500
    assert server.calls.in_flight == 0


async def test_the_largest_batch(server: Serving) -> None:
    got = await batch(server, [text(f"q{i % 7}") for i in range(requests.MAX_BATCH)])
    assert {code for code, _ in got.values()} == {200}


async def test_too_much_in_flight_is_429_for_what_is_too_much(
    server: Serving, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_module, "MAX_IN_FLIGHT", 10)
    async with posted(server, [text(f"slow {i}") for i in range(25)]) as r:
        late = [parsed(await r.content.readline()) for _ in range(15)]
        assert {(code, body["status"]) for _, code, body in late} == {(429, "rate_limited")}
        world.go.set()
        rest = [parsed(line) async for line in r.content]
    assert {code for _, code, _ in rest} == {200} and len(rest) == 10
    assert server.calls.in_flight == 0
