"""The client against servers that misbehave on real sockets: never an exception, always a typed status."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from pydantic import ValidationError

from megatron_mmsr1.procs.ports import free_port
from megatron_mmsr1.protocol import ImageHit, TextHit
from megatron_mmsr1.search import client as client_module
from megatron_mmsr1.search.client import SearchClient
from megatron_mmsr1.search.wire import ImageReply, TextReply

OK = b'{"status":"ok","hits":[{"link":"l","summary":"s","title":"t"}]}'
Answer = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A bare HTTP server: `answer(n, writer)` replies to the n-th request; the bodies that came are listed."""
    bodies: list[bytes] = []
    busy: set[asyncio.Task[None] | None] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        busy.add(asyncio.current_task())
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            bodies.append(await reader.readexactly(length))
            await answer(len(bodies), writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    s = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{s.sockets[0].getsockname()[1]}", bodies
    finally:
        s.close()
        for task in busy:
            if task is not None:
                task.cancel()


def http(code: int, body: bytes = OK, *headers: str) -> Answer:
    async def answer(_: int, writer: asyncio.StreamWriter) -> None:
        head = [f"HTTP/1.1 {code} X", f"content-length: {len(body)}", "connection: close", *headers]
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        await writer.drain()

    return answer


def in_turn(*answers: Answer) -> Answer:
    async def answer(n: int, writer: asyncio.StreamWriter) -> None:
        await answers[min(n, len(answers)) - 1](n, writer)

    return answer


async def hang_up(_: int, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def never(_: int, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def torn(_: int, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n" + OK)
    await writer.drain()


async def no_http(_: int, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    await writer.drain()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BACKOFF_S", 0.001)


@pytest.mark.parametrize(
    ("answer", "status", "tries"),
    [
        (http(200), "ok", 1),
        (http(400, b'{"status":"refused","detail":"k: too much"}'), "refused", 1),
        (http(404, b"<html>"), "refused", 1),
        (http(413, b""), "refused", 1),
        (http(301, b"", "location: /"), "refused", 1),
        (http(429, b"{}"), "rate_limited", 3),
        (http(500, b"{}"), "upstream_error", 3),
        (http(503, b"[1]"), "upstream_error", 3),
        (http(200, b"{}"), "upstream_error", 1),
        (http(200, b'{"status":"fine"}'), "upstream_error", 1),
        (http(200, b"\xff\x00garbage"), "upstream_error", 1),
        (http(200, b'{"status":"timeout","detail":"slow"}'), "timeout", 1),
        (hang_up, "upstream_error", 3),
        (torn, "upstream_error", 3),
        (no_http, "upstream_error", 3),
        (in_turn(http(503), hang_up, http(200)), "ok", 3),
        (in_turn(http(429, b"{}", "retry-after: 0"), http(200)), "ok", 2),
    ],
)
async def test_every_answer_has_a_status_and_the_right_number_of_tries(answer: Answer, status: str, tries: int) -> None:
    async with server(answer) as (url, bodies), SearchClient(url) as client:
        reply = await client.text("zurimo capital", k=3)
    assert (reply.status, len(bodies)) == (status, tries)
    assert bodies[0] == b'{"query":"zurimo capital","k":3}'
    assert reply.hits == ([TextHit("l", "s", "t")] if status == "ok" else [])
    assert (reply.status == "ok") == (reply.detail == "")


async def test_the_deadline_bounds_the_whole_call() -> None:
    async with server(never) as (url, bodies), SearchClient(url, timeout_s=0.2) as client:
        reply = await client.text("x")
    assert (reply.status, reply.status.infrastructure) == ("timeout", True)
    assert len(bodies) <= 1


async def test_retry_after_is_honoured_within_the_deadline() -> None:
    async with server(http(429, b"{}", "retry-after: 60")) as (url, bodies), SearchClient(url, timeout_s=0.2) as client:
        reply = await client.text("x")
    assert reply.status == "timeout"
    assert len(bodies) <= 1


async def test_nobody_listens() -> None:
    async with SearchClient(f"http://127.0.0.1:{free_port()}") as client:
        calls = (client.text("x"), client.image(b"x"), client.read("u"), client.summarise("a", "b"))
        for reply in await asyncio.gather(*calls):
            assert (reply.status, "no connection" in reply.detail) == ("upstream_error", True)


async def test_what_utf8_cannot_carry_is_refused_here() -> None:
    async with SearchClient("http://127.0.0.1:9") as client:
        assert (await client.text("a\ud800")).status == "refused"


async def test_a_client_that_closes_answers_every_call_and_leaves_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls under way, calls whose batch has not begun, calls that wait for their turn of the loop, and later ones."""
    lost: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: lost.append(what))
    async with server(never) as (url, _):
        client = SearchClient(url, timeout_s=20)
        under_way = [asyncio.create_task(client.text(f"a{n}")) for n in range(3)]
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(client.text(f"b{n}")) for n in range(3)]
        await asyncio.sleep(0)  # they have asked, and nothing is sent yet
        closing = asyncio.create_task(client.close())
        replies = await asyncio.wait_for(asyncio.gather(*under_way, *waiting, client.text("late")), 5)
        await closing
        assert await client.stats() == {}
    assert {r.status for r in replies} == {"upstream_error"}
    assert all("closed" in r.detail for r in replies)
    gc.collect()
    await asyncio.sleep(0)
    assert lost == []


async def test_a_cancelled_call_is_cancelled() -> None:
    """Ctrl-C and a dropped trajectory must not be mistaken for a tool that timed out."""
    async with server(never) as (url, _), SearchClient(url) as client:
        call = asyncio.create_task(client.text("x"))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


def test_replies_go_over_the_wire_and_back() -> None:
    reply = ImageReply.model_validate({"status": "ok", "hits": [{"title": "t", "image": "AP8=", "url": "u"}]})
    assert reply.hits == [ImageHit("t", b"\x00\xff", "u")]
    assert ImageReply.model_validate_json(reply.model_dump_json()) == reply
    assert ImageReply(status=reply.status, hits=[ImageHit("t", None)]).hits[0].image is None
    with pytest.raises(ValidationError, match="base64"):
        ImageReply.model_validate({"status": "ok", "hits": [{"title": "t", "image": "%"}]})
    with pytest.raises(ValidationError, match="hits"):
        TextReply.model_validate({"status": "ok", "hits": [{"link": "l", "summary": "s", "x": 1}]})
