"""The guarded fetcher: what it must refuse, that nothing of that is ever connected to, and what it fetches all the same."""

from __future__ import annotations

import asyncio
import itertools
import socket

import httpcore
import pytest
from hostile import PUBLIC, World, canary, http, redirect
from hypothesis import given
from hypothesis import strategies as st
from ssrf_urls import LOCATIONS, NAMES, URLS

from megatron_mmsr1.config.search import FetchSection
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.fetch import IMAGES, Fetcher, FetchFailed, Reason, Refused, fetch
from megatron_mmsr1.search.upstream.deadline import within
from megatron_mmsr1.search.web.urls import parse
from megatron_mmsr1.trajectory import ToolStatus

PAGE = http(b"<p>Hello.</p>")


def test_the_battery_is_as_large_as_promised() -> None:
    assert len(URLS) >= 200
    assert len(set(URLS)) == len(URLS)


@pytest.mark.parametrize(("url", "reason"), URLS, ids=[ascii(u)[:60] for u, _ in URLS])
async def test_refused_and_never_connected_to(url: str, reason: Reason) -> None:
    async with canary(PAGE) as bird:
        world = World(bird, NAMES)
        with pytest.raises(Refused) as e:
            await fetch(url, network=world)
        assert (e.value.reason, e.value.status) == (reason, ToolStatus.REFUSED), e.value.detail
        assert e.value.retry is None and len(e.value.detail) < 300
        assert not world.connected and not bird.connections


@pytest.mark.parametrize(("location", "reason"), LOCATIONS, ids=[ascii(u)[:60] for u, _ in LOCATIONS])
@pytest.mark.parametrize("status", [301, 307])
async def test_a_public_page_leads_nowhere_else(location: str, reason: Reason, status: int) -> None:
    async with canary(redirect(location, status)) as bird:
        world = World(bird, NAMES)
        with pytest.raises(SearchFailure) as e:
            await fetch("http://site.test/", network=world)
        if isinstance(e.value, Refused):
            assert e.value.reason == reason
        else:  # control characters: the HTTP parser is the first to refuse
            assert reason is Reason.URL and "\x01" in location
        assert {a for a, _ in world.connected} == {PUBLIC}
        assert bird.connections == len(world.connected) <= 4


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_real_server_here_is_not_reached_and_would_be(host: str) -> None:
    """Without a world of the test's own: the system's resolver and sockets."""
    if host == "::1" and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    shown = f"[{host}]" if ":" in host else host
    async with canary(PAGE, host=host) as bird:
        for name in (shown, "localhost", "localhost.localdomain", socket.gethostname()):
            with pytest.raises(Refused):
                await fetch(f"http://{name}:{bird.port}/")
        assert bird.connections == 0
        assert (await fetch(f"http://{shown}:{bird.port}/", allow=[f"{shown}:{bird.port}"])).body == b"<p>Hello.</p>"
        assert bird.connections == 1


@pytest.mark.parametrize("steps", range(6))
async def test_three_redirects_and_no_more(steps: int) -> None:
    async def respond(line: str, writer: asyncio.StreamWriter) -> None:
        n = int(line.split()[1].rpartition("/")[2])
        writer.write(PAGE if n == steps else redirect(f"http://{('site', 'other')[n % 2]}.test/{n + 1}"))

    async with canary(respond) as bird:
        world = World(bird)
        if steps > 3:
            with pytest.raises(Refused) as e:
                await fetch("http://site.test/0", network=world)
            assert e.value.reason is Reason.REDIRECTS
            assert bird.connections == 4
        else:
            fetched = await fetch("http://site.test/0", network=world)
            assert fetched.url.endswith(f"/{steps}")
            assert len(fetched.redirects) == steps
        assert len(world.looked_up) == bird.connections


@pytest.mark.parametrize(
    ("answers", "connected"),
    [([[PUBLIC], ["127.0.0.1"]], [PUBLIC]), ([["127.0.0.1"], [PUBLIC]], []), ([[PUBLIC, "127.0.0.1"]], [])],
)
async def test_rebinding_finds_no_second_look_up(answers: list[list[str]], connected: list[str]) -> None:
    async with canary(PAGE) as bird:
        world = World(bird, {"rebind.test": answers})
        try:
            await fetch("http://rebind.test/", network=world)
        except Refused as e:
            assert e.reason is Reason.ADDRESS and not connected
        assert world.looked_up == ["rebind.test"]
        assert [a for a, _ in world.connected] == connected


async def test_a_redirect_to_the_same_host_is_checked_anew() -> None:
    async with canary(redirect("/two")) as bird:
        world = World(bird, {"rebind.test": [[PUBLIC], ["169.254.169.254"]]})
        with pytest.raises(Refused) as e:
            await fetch("http://rebind.test/", network=world)
        assert e.value.reason is Reason.ADDRESS
        assert [a for a, _ in world.connected] == [PUBLIC]


async def test_the_system_is_asked_once_a_hop(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    answers = itertools.chain([PUBLIC], itertools.repeat("127.0.0.1"))

    def rebinding(host: str, port: int, *_: object, **__: object) -> list[object]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    async with canary(PAGE) as bird:
        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        world = World(bird)
        await fetch("http://unknown.test/", network=world)
        assert (asked, world.connected) == (["unknown.test"], [(PUBLIC, 80)])


@pytest.mark.parametrize(
    ("url", "host", "line", "port"),
    [
        ("http://site.test", "site.test", "GET / HTTP/1.1", 80),
        ("HTTP://SITE.TEST.:80/A?b=c#d", "site.test", "GET /A?b=c HTTP/1.1", 80),
        ("http://site.test:443/", "site.test:443", "GET / HTTP/1.1", 443),
        ("http://site.test?q=a b", "site.test", "GET /?q=a%20b HTTP/1.1", 80),
        ("  http://site.test/ü/%C3%BC?x=日 ", "site.test", "GET /%C3%BC/%C3%BC?x=%E6%97%A5 HTTP/1.1", 80),
        (r"http://site.test/a\b", "site.test", "GET /a%5Cb HTTP/1.1", 80),
        ("http://bücher.test/@x", "xn--bcher-kva.test", "GET /@x HTTP/1.1", 80),
        ("http://8.8.2056/", "8.8.8.8", "GET / HTTP/1.1", 80),
        ("http://[2606:4700:0::1111]/", "[2606:4700::1111]", "GET / HTTP/1.1", 80),
        ("http://under_score.test/", "under_score.test", "GET / HTTP/1.1", 80),
    ],
)
async def test_what_is_sent(url: str, host: str, line: str, port: int) -> None:
    async with canary(PAGE) as bird:
        world = World(bird, {"xn--bcher-kva.test": [[PUBLIC]], "under_score.test": [[PUBLIC]]})
        fetched = await fetch(url, network=world, user_agent="me/1")
        assert (fetched.status, fetched.content_type, fetched.text) == (200, "text/html", "<p>Hello.</p>")
        sent = bird.requests[0].decode().split("\r\n")
        headers = dict(h.split(": ", 1) for h in sent[1:] if h)
        assert sent[0] == line
        assert (headers["Host"], headers["User-Agent"], headers["Accept-Encoding"]) == (host, "me/1", "gzip, deflate")
        assert not {"Cookie", "Authorization", "Referer", "Proxy-Authorization"} & set(headers)
        assert world.connected[0][1] == port


async def test_no_proxy_and_no_cookie(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def respond(line: str, writer: asyncio.StreamWriter) -> None:
        writer.write(PAGE if "/b" in line else http(b"", 302, location="/b", set_cookie="a=b; Path=/"))

    async with canary(respond) as bird:
        await fetch("http://site.test/", network=World(bird))
        assert len(bird.requests) == 2
        assert b"ookie" not in bird.requests[1]


async def test_the_next_address_when_one_does_not_answer() -> None:
    async with canary(PAGE) as bird:

        class HalfDead(World):
            async def connect(self, address: str, port: int, timeout: float) -> httpcore.AsyncNetworkStream:
                if address == "8.8.8.8":
                    raise httpcore.ConnectError("refused")
                return await super().connect(address, port, timeout)

        world = HalfDead(bird, {"two.test": [["8.8.8.8", PUBLIC]], "dead.test": [["8.8.8.8"]]})
        assert (await fetch("http://two.test/", network=world)).status == 200
        with pytest.raises(FetchFailed) as e:
            await fetch("http://dead.test/", network=world)
        assert (e.value.status, e.value.retry) == (ToolStatus.UPSTREAM_ERROR, 0.0)


@pytest.mark.parametrize(
    "entry", ["127.0.0.1", "127.0.0.1:PORT", "0x7f.1:PORT", "team.test", "TEAM.test.:PORT", "localhost:PORT"]
)
async def test_a_team_s_own_host(entry: str) -> None:
    async with canary(PAGE) as bird:
        entry = entry.replace("PORT", str(bird.port))
        host = entry.partition(":")[0]
        world = World(bird, {"team.test": [["127.0.0.1"]], "x.team.test": [["127.0.0.1"]], "localhost": [["127.0.0.1"]]})
        fetcher = Fetcher(FetchSection(allow=[entry]), world)
        assert (await fetcher.get(f"http://{host}:{bird.port}/")).status == 200
        for url in (f"http://x.{host}/", f"http://10.0.0.1:{bird.port}/", f"http://u@{host}:{bird.port}/", f"ftp://{host}/"):
            with pytest.raises(Refused):
                await fetcher.get(url)
        if ":" in entry:
            with pytest.raises(Refused):
                await fetcher.get(f"http://{host}:{bird.port + 1}/")
        assert bird.connections == 1


async def test_a_team_s_own_host_leads_to_no_other() -> None:
    async with canary(redirect("http://127.0.0.2/")) as bird:
        world = World(bird)
        with pytest.raises(Refused) as e:
            await fetch(f"http://127.0.0.1:{bird.port}/", allow=["127.0.0.1"], network=world)
        assert e.value.reason is Reason.ADDRESS
        assert bird.connections == 1


@pytest.mark.parametrize(
    "entry", ["a b", "", *["*.team.test", "http://team.test", "team.test/x", "team.test:0", "10.0.0.0/8", "u@h.test"]]
)
def test_a_broken_allow_list_is_named(entry: str) -> None:
    with pytest.raises(UsageError, match=r"search\.fetch\.allow"):
        Fetcher(FetchSection(allow=[entry]))


@pytest.mark.parametrize(
    ("status", "want", "retried"),
    [
        *((404, ToolStatus.EMPTY, False), (410, ToolStatus.EMPTY, False), (429, ToolStatus.RATE_LIMITED, False)),
        *(
            (403, ToolStatus.UPSTREAM_ERROR, False),
            (500, ToolStatus.UPSTREAM_ERROR, True),
            (503, ToolStatus.UPSTREAM_ERROR, True),
        ),
        *((504, ToolStatus.TIMEOUT, True), (304, ToolStatus.UPSTREAM_ERROR, False), (302, ToolStatus.UPSTREAM_ERROR, False)),
    ],
)
async def test_http_errors_are_typed(status: int, want: ToolStatus, retried: bool) -> None:
    async with canary(http(b"x", status)) as bird:
        with pytest.raises(FetchFailed) as e:
            await fetch("http://site.test/", network=World(bird))
        assert (e.value.status, e.value.retry is not None) == (want, retried)


@pytest.mark.parametrize(
    "kind", ["", *["image/png", "application/json", "application/pdf", "text/css", "image/svg+xml", "x", "text/htmlx"]]
)
async def test_other_content_is_refused(kind: str) -> None:
    async with canary(http(b"x", content_type=kind)) as bird:
        with pytest.raises(Refused) as e:
            await fetch("http://site.test/", network=World(bird))
        assert e.value.reason is Reason.CONTENT_TYPE
        if kind == "image/png":
            assert (await fetch("http://site.test/", network=World(bird), accept=IMAGES)).body == b"x"


async def test_an_outer_deadline_holds_too() -> None:
    async def never(_: str, __: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async with canary(never) as bird:
        with pytest.raises(SearchFailure) as e:
            async with within(0.2, "the call"):
                await fetch("http://site.test/", network=World(bird))
        assert e.value.status is ToolStatus.TIMEOUT


@given(
    st.text(max_size=60), st.sampled_from(["{}", "http://{}", "http://{}/", "http://site.test{}", "http://[{}]/", "https:{}"])
)
def test_any_text_is_a_target_or_refused(noise: str, around: str) -> None:
    try:
        target = parse(around.format(noise))
    except Refused:
        return
    assert parse(target.url) == target  # nothing is left to read in another way
    assert target.url.isascii() and target.url.isprintable() and " " not in target.url
