"""Answers made to exhaust whoever reads them: each ends in time, within the caps, and with a typed failure."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpcore
import psutil
import pytest
from hostile import Respond, World, canary, gzip_bomb, http
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.fetch import Fetched, FetchFailed, Reason, Refused, fetch
from megatron_mmsr1.search.upstream.deadline import within
from megatron_mmsr1.search.web.body import MAX_MEMBERS, Inflater
from megatron_mmsr1.search.web.pages import Extractors, html_page
from megatron_mmsr1.trajectory import ToolStatus

CAP = 1_000_000
TORN = ToolStatus.UPSTREAM_ERROR
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ntransfer-encoding: chunked\r\n\r\n"
OPEN = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n"


async def got(respond: Respond | bytes, deadline_s: float = 300) -> Fetched:
    async with canary(respond) as bird:
        return await fetch("http://site.test/", network=World(bird), max_bytes=CAP, deadline_s=deadline_s)


def without_end(start: bytes, piece: bytes, pause_s: float = 0) -> Respond:
    async def respond(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return respond


def zipped(body: bytes, encoding: str = "gzip", **headers: str) -> bytes:
    return http(body, content_encoding=encoding, **headers)  # pyright: ignore


RAW = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
PLAIN = b"<p>A page.</p>" * 1_000


@pytest.mark.parametrize(
    "answer",
    [
        zipped(gzip.compress(PLAIN)),
        zipped(gzip.compress(PLAIN), "X-GZip"),
        zipped(gzip.compress(PLAIN[:700]) + gzip.compress(PLAIN[700:])),
        zipped(gzip.compress(PLAIN) + b"\0" * 512),
        zipped(zlib.compress(PLAIN), "deflate"),
        zipped(RAW.compress(PLAIN) + RAW.flush(), "deflate"),
        zipped(PLAIN, "identity"),
        CHUNKED + b"3e8;x=y\r\n" + PLAIN[:1000] + b"\r\n" + b"%x\r\n" % (len(PLAIN) - 1000) + PLAIN[1000:] + b"\r\n0\r\n\r\n",
        OPEN + PLAIN,
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + http(PLAIN),
    ],
)
async def test_what_honest_servers_send_is_read(answer: bytes) -> None:
    assert (await got(answer)).body == PLAIN


@pytest.mark.long
@pytest.mark.parametrize(
    "answer",
    [
        http(b"x" * (CAP + 1)),
        http(b"", content_length="999999999999"),
        zipped(gzip_bomb(10_000)),
        zipped(gzip.compress(b"x" * (CAP + 1))),
        zipped(zlib.compress(bytes(50 * CAP)), "deflate"),
        OPEN + b"x" * 2 * CAP,
        CHUNKED + (b"1\r\nx\r\n" * (CAP // 2)),  # a wire of five bytes for each of the body
    ],
)
async def test_past_the_size_is_refused(answer: bytes) -> None:
    with pytest.raises(Refused) as e:
        await got(answer)
    assert e.value.reason is Reason.SIZE


@pytest.mark.parametrize("size", [CAP - 1, CAP])
async def test_the_cap_itself_is_not_past_it(size: int) -> None:
    assert len((await got(http(bytes(size)))).body) == size
    assert len((await got(zipped(gzip.compress(bytes(size))))).body) == size


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip, deflate", "gzip;q=1", "\xff"])
async def test_other_encodings_are_refused(encoding: str) -> None:
    with pytest.raises(Refused) as e:
        await got(zipped(gzip_bomb(10), encoding))
    assert e.value.reason is Reason.ENCODING


async def test_gzip_within_gzip_is_unpacked_once() -> None:
    inner = gzip_bomb(500)
    assert (await got(zipped(gzip.compress(inner)))).body == inner


async def test_a_gzip_body_of_many_members_is_refused() -> None:
    with pytest.raises(Refused) as e:
        await got(zipped(gzip.compress(b"") * (MAX_MEMBERS + 2)))
    assert e.value.reason is Reason.ENCODING


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"\0" * 1000, b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n"),
        *(b"HTTP/1.1 999999 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", b"220 ftp\r\n"),
        http(b"short", content_length="100"),
        http(b"x", content_length="-1"),
        http(b"x", content_length="1, 2"),
        http(b"x", content_length="9" * 5_000),
        CHUNKED + b"zz\r\nx\r\n0\r\n\r\n",
        CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"5\r\nhello",
        CHUNKED + b"f" * 5_000 + b"\r\n",
        CHUNKED + b"1;" + b"x" * 300_000,
        zipped(gzip.compress(PLAIN)[:-20]),
        zipped(b"\x1f\x8b" + b"\xff" * 100),
        zipped(b"no gzip at all"),
        zipped(b"\x78\x9c\xff\xff\xff", "deflate"),
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
    ],
)
async def test_torn_and_garbled_answers_are_typed(answer: bytes) -> None:
    with pytest.raises(FetchFailed) as e:
        await got(answer)
    assert e.value.status is TORN
    assert e.value.retry is None


@pytest.mark.long
@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (OPEN, b"x" * 65_536),
        (CHUNKED, b"1000\r\n" + b"x" * 4_096 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 1_000),
        (b"HTTP/1.1 200 OK\r\nx: ", b"y" * 65_536),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000),
        (b"", b"\r\n" * 1_000),
        (b"", b"x" * 65_536),
        (CHUNKED + b"0\r\n", b"x: y\r\n" * 1_000),
        (CHUNKED, b"0" * 65_536),
    ],
)
async def test_answers_without_end_are_left_at_a_cap(start: bytes, piece: bytes) -> None:
    """The deadline is longer than the test may take: it is the caps that end them."""
    with pytest.raises(SearchFailure) as e:
        await got(without_end(start, piece), deadline_s=600)
    assert e.value.status in (ToolStatus.REFUSED, TORN)


@pytest.mark.long
@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nx: ", OPEN, CHUNKED + b"ffff\r\n"])
async def test_slow_answers_end_at_the_deadline(start: bytes) -> None:
    """If a byte started the clock anew, they would never end."""
    with pytest.raises(FetchFailed) as e:
        await got(without_end(start, b"x", 0.2), deadline_s=1)
    assert e.value.status is ToolStatus.TIMEOUT


async def test_redirects_share_one_deadline() -> None:
    async def respond(_: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.4)
        writer.write(http(b"", 302, location="/again"))

    with pytest.raises(FetchFailed) as e:
        await got(respond, deadline_s=1)
    assert e.value.status is ToolStatus.TIMEOUT


@asynccontextmanager
async def stuck_resolver() -> AsyncIterator[World]:
    class Stuck(World):
        async def resolve(self, host: str, port: int) -> list[str]:
            await asyncio.sleep(60)
            return []

    async with canary() as bird:
        yield Stuck(bird)


async def test_a_look_up_without_end_is_under_the_deadline() -> None:
    async with stuck_resolver() as world:
        with pytest.raises(FetchFailed) as e:
            await fetch("http://site.test/", network=world, deadline_s=0.3)
        assert e.value.status is ToolStatus.TIMEOUT


async def test_a_host_that_swallows_connections_leaves_time_for_the_next() -> None:
    class Hole(World):
        async def connect(self, address: str, port: int, timeout: float) -> httpcore.AsyncNetworkStream:
            if address == "8.8.8.8":
                await asyncio.sleep(timeout)
                raise httpcore.ConnectTimeout
            return await super().connect(address, port, timeout)

    async with canary(http(PLAIN)) as bird:
        world = Hole(bird, {"two.test": [["8.8.8.8", "8.8.4.4"]]})
        assert (await fetch("http://two.test/", network=world, deadline_s=4)).body == PLAIN


async def test_a_bomb_costs_what_the_cap_costs() -> None:
    """10 MB that unpack to 10 GB."""
    bomb = gzip_bomb(10_000)
    assert len(bomb) > 5_000_000
    async with canary(zipped(bomb[: CAP + 1], content_length=str(CAP - 1))) as bird:
        world = World(bird)
        tracemalloc.start()
        try:
            with pytest.raises(Refused):
                await fetch("http://site.test/", network=world, max_bytes=CAP)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 6 * CAP


@given(st.binary(max_size=2_000), st.sampled_from(["gzip", "deflate", "identity"]), st.integers(1, 50), st.booleans())
def test_inflating_piece_by_piece(body: bytes, encoding: str, step: int, torn: bool) -> None:
    packed = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[encoding](body)
    sent = packed[:-1] if torn and encoding != "identity" else packed
    inflater = Inflater(encoding, len(body))
    out = b"".join(inflater.feed(sent[i : i + step]) for i in range(0, len(sent), step))
    if sent != packed:
        with pytest.raises(FetchFailed):
            inflater.end()
    else:
        inflater.end()
        assert out == body
        if body:
            with pytest.raises(Refused):
                Inflater(encoding, len(body) - 1).feed(packed)


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate"]))
def test_any_bytes_inflate_or_fail_typed(noise: bytes, encoding: str) -> None:
    inflater = Inflater(encoding, 10_000)
    try:
        assert len(inflater.feed(noise)) <= 10_000
        inflater.end()
    except SearchFailure:
        pass


N = 5_000_000
PAGES = {
    "nested div": lambda: "<div>" * 100_000 + "x",
    "nested bold": lambda: "<b>" * (N // 3) + "x",
    "nested links": lambda: "<a href=x>y" * (N // 11),
    "nested tables": lambda: "<table><tr><td>" * (N // 15) + "x",
    "deep again and again": lambda: ("<ul><li>" * 100 + "words that are long enough to keep " + "</li></ul>" * 100) * 190,
    "scripts between words": lambda: "<script></script>x" * (N // 18),
    "buttons between words": lambda: "<button></button>text here " * (N // 27),
    "hidden between words": lambda: "a" + "<i hidden></i>xy " * (N // 17),
    "one line": lambda: "word " * (N // 5),
    "one attribute": lambda: f'<p title="{"a" * N}">x</p>',
    "a table": lambda: "<table>" + "<tr><td>a<td>b" * (N // 14),
    "paragraphs": lambda: "<p>some words here. " * (N // 20),
    "rules and classes": lambda: (
        "<style>"
        + "".join(f".a{i}{{display:none}}" for i in range(N // 50))
        + "</style>"
        + "".join(f"<p class='b{i} c{i}'>w" for i in range(N // 50))
    ),
    "a title": lambda: f"<title>{'a ' * (N // 2)}</title>",
    "titles": lambda: "<title>a</title>" * (N // 16),
    "metas": lambda: '<meta property="og:title" content="x">' * (N // 38),
    "entities": lambda: (
        '<!DOCTYPE x [<!ENTITY a0 "aaaaaaaaaa">'
        + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
        + "]><html xmlns='http://www.w3.org/1999/xhtml'><p>&a11;</p></html>"
    ),
    "an external entity": lambda: '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><html><p>&a;</p></html>',
}


@pytest.mark.parametrize("name", PAGES)
def test_no_page_takes_for_ever(name: str) -> None:
    """Seconds on one core (5 at worst when this was measured), where a quadratic step takes minutes to hours."""
    code = (
        "import resource, sys; sys.path.insert(0, 'tests');"
        "resource.setrlimit(resource.RLIMIT_CPU, (60, 60));"
        "from test_search_hostile import PAGES; from megatron_mmsr1.search.web.pages import html_page;"
        f"page = PAGES[{name!r}]();"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; title, text = html_page(page);"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before;"
        "print(grown // 1024, len(title), len(text), 'root:' in text)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    megabytes, title, text, leaked = done.stdout.split()
    assert int(megabytes) < 800
    assert int(title) <= 300
    assert int(text) <= N + 1
    assert leaked == "False"


def test_entities_of_a_page_s_own_are_not_expanded() -> None:
    assert len(html_page(PAGES["entities"]())[1]) < 1_000


def workers() -> list[psutil.Process]:
    """Those of Extractors; a session of tests has other children too."""
    return [p for p in psutil.Process().children() if any(a.endswith("search.web.pages") for a in p.cmdline())]


async def test_a_page_that_takes_for_ever_costs_one_process() -> None:
    extractors = Extractors(1)
    try:
        assert await extractors.page("<title>A</title><p>One.") == ("A", "One.")
        attributes = " ".join(f"a{i}=1" for i in range(N // 9))
        with pytest.raises(SearchFailure) as e:
            async with within(1, "the call"):
                await extractors.page(f"<p {attributes}>x</p>")
        assert e.value.status is ToolStatus.TIMEOUT
        assert await extractors.page("<p>\ud800Two.") == ("", "?Two.")
    finally:
        await extractors.close()


async def test_a_worker_that_dies_is_replaced() -> None:
    extractors = Extractors(1)
    try:
        for kill in (True, False):
            asking = asyncio.create_task(extractors.page("<p>" + "word " * 500_000))
            if kill:
                while not (children := workers()):
                    await asyncio.sleep(0.01)
                children[0].kill()
                with pytest.raises(SearchFailure) as e:
                    await asking
                assert e.value.status is ToolStatus.REFUSED
            else:
                assert (await asking)[1].startswith("word word")
                workers()[0].kill()
                await asyncio.sleep(0.5)
        assert await extractors.page("<p>again") == ("", "again")
    finally:
        await extractors.close()
    assert not workers()
