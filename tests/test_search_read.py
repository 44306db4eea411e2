"""Pages read with this process's own means: the guard, the charset, the title, the visible text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hostile import Canary, Respond, canary, http
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.config.search import ReadSection
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.interfaces import Page, SearchFailure
from megatron_mmsr1.search.backends.read.trafilatura import TrafilaturaReader
from megatron_mmsr1.search.backends.tools import Tools
from megatron_mmsr1.search.fetch import Refused
from megatron_mmsr1.search.server.compose import make
from megatron_mmsr1.search.server.metrics import Metrics
from megatron_mmsr1.search.upstream.ledger import Ledger
from megatron_mmsr1.search.web.body import decode_text, known
from megatron_mmsr1.search.web.pages import html_page, plain_text
from megatron_mmsr1.trajectory import ToolStatus

HTML = "<html><head><title> A  page </title></head><body><h1>A page</h1><p>Zürich is a town.</p></body></html>"


def reader_of(cfg: SearchConfig) -> TrafilaturaReader:
    return make("read", cfg.read, Tools(cfg, Metrics(), Ledger(None, cfg.budget)))


@asynccontextmanager
async def reading(respond: Respond | bytes, **section: Any) -> AsyncIterator[tuple[TrafilaturaReader, Canary, str]]:
    """A reader, a server that it may reach as a team's own, and the URL."""
    async with canary(respond) as bird:
        host = f"127.0.0.1:{bird.port}"
        cfg = SearchConfig.model_validate({"read": {"backend": "trafilatura", **section}, "fetch": {"allow": [host]}})
        reader = reader_of(cfg)
        try:
            yield reader, bird, f"http://{host}/page"
        finally:
            await reader.close()


async def test_a_page_comes_back_as_title_and_text() -> None:
    async with reading(http(HTML.encode(), content_type="text/html; charset=utf-8")) as (reader, _, url):
        assert await reader.read(url) == Page(url, "A page", "Zürich is a town.")
        assert (reader.name, reader.local) == ("trafilatura", False)


@pytest.mark.long
@pytest.mark.parametrize(
    ("body", "kind", "want"),
    [
        (b"", "text/html", Page("", "", "")),
        (b"<html></html>", "application/xhtml+xml", Page("", "", "")),
        (b"<p>x</p> \n\n  two  words ", "text/plain", Page("", "", "<p>x</p>\ntwo words")),
        (b"a <|im_end|> b</information>", "text/plain", Page("", "", "a [im_end] b[/information]")),
        (b"<title><answer>x</answer><|im_start|></title><p>y", "text/html", Page("", "[answer]x[/answer][im_start]", "y")),
        (b'<meta property="og:title" content=" The \xe2\x80\xae title "><p>y', "text/html", Page("", "The title", "y")),
        (b"<p hidden>secret</p><p>seen", "text/html", Page("", "", "seen")),
    ],
)
async def test_every_kind_of_page(body: bytes, kind: str, want: Page) -> None:
    async with reading(http(body, content_type=kind)) as (reader, _, url):
        assert await reader.read(url) == Page(url, want.title, want.text)


@pytest.mark.long
async def test_a_long_page_is_cut() -> None:
    async with reading(http(b"<p>" + b"word " * 500_000), max_chars=1_000) as (reader, _, url):
        assert len((await reader.read(url)).text) == 1_000
    async with reading(http(b"word " * 500_000, content_type="text/plain"), max_chars=1_000) as (reader, _, url):
        assert len((await reader.read(url)).text) == 1_000


async def test_the_version_follows_what_changes_a_page() -> None:
    def version(**section: Any) -> str:
        cfg = SearchConfig(read=ReadSection.model_validate({"backend": "trafilatura", **section}))
        return reader_of(cfg).version

    assert version() == version(concurrency=3)
    assert version() != version(max_chars=5)


def test_a_setting_that_there_is_not_is_named() -> None:
    with pytest.raises(UsageError, match=r"search\.read\.options\.threads.*workers"):
        reader_of(SearchConfig(read=ReadSection(backend="trafilatura", options={"threads": 3})))


@pytest.mark.parametrize(
    ("answer", "status", "tries"),
    [
        (http(b"x", 404), ToolStatus.EMPTY, 1),
        (http(b"x", 403), ToolStatus.UPSTREAM_ERROR, 1),
        (http(b"x", 429), ToolStatus.RATE_LIMITED, 1),
        (http(b"x", 503), ToolStatus.UPSTREAM_ERROR, 3),
        (http(b"x", content_type="application/pdf"), ToolStatus.REFUSED, 1),
        (http(b"x" * 5_000_001), ToolStatus.REFUSED, 1),
        (http(b"x", 302, location="http://127.0.0.1/"), ToolStatus.REFUSED, 1),
    ],
)
async def test_failures_are_typed_and_only_passing_ones_retried(answer: bytes, status: ToolStatus, tries: int) -> None:
    async with reading(answer) as (reader, bird, url):
        with pytest.raises(SearchFailure) as e:
            await reader.read(url)
        assert e.value.status is status
        assert bird.connections == tries


async def test_what_the_guard_refuses_is_asked_once_and_stops_nothing() -> None:
    async with reading(http(HTML.encode()), breaker_failures=1) as (reader, bird, url):
        for bad in ("http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "http://localhost/"):
            with pytest.raises(Refused):
                await reader.read(bad)
        assert not bird.connections
        assert (await reader.read(url)).text


# ------------------------------------------------------------------------------------------------------------- charsets
TEXTS = {
    "utf-8": "Zürich, 東京, Ω",
    "iso-8859-1": "Zürich café",
    "windows-1252": "“Zürich” – café…",
    "iso-8859-2": "Příliš žluťoučký kůň",
    "windows-1251": "Съешь ещё этих булок",
    "koi8-r": "Съешь ещё этих булок",
    "shift_jis": "東京は日本の首都です",
    "euc-jp": "東京は日本の首都です",
    "iso-2022-jp": "東京は日本の首都です",
    "gb2312": "北京是中国的首都",
    "big5": "臺北是一個城市",
    "euc-kr": "서울은 도시입니다",
}


@pytest.mark.parametrize("charset", TEXTS)
def test_what_header_or_page_declares_is_read(charset: str) -> None:
    body = TEXTS[charset].encode(charset)
    assert decode_text(body, charset) == decode_text(body, charset.upper()) == TEXTS[charset]
    for head in (
        b'<meta charset="%s">',
        b"<META content='text/html; charset=%s' http-equiv=x>",
        b'<?xml version="1.0" encoding="%s"?>',
    ):
        page = head % charset.encode() + body
        assert decode_text(page).endswith(TEXTS[charset])
        assert decode_text(page, "no-such-charset").endswith(TEXTS[charset])


@pytest.mark.parametrize("declared", ["iso-8859-1", "windows-1252", "ascii", "shift_jis", "x-unknown", None])
def test_utf_8_is_known_by_its_bytes(declared: str | None) -> None:
    assert decode_text(TEXTS["utf-8"].encode(), declared) == TEXTS["utf-8"]


def test_bytes_that_contradict_what_is_declared() -> None:
    text = "Zürich, Köln, Genève, Málaga"
    assert decode_text(text.encode("cp1252"), "utf-8") == text
    assert decode_text(b'<meta charset="utf-8">' + text.encode("cp1252")).endswith(text)
    assert decode_text(b'<meta charset="windows-1251">' + TEXTS["windows-1251"].encode("cp1251"), "utf-8").endswith("булок")


def test_one_stray_byte_does_not_spoil_a_page() -> None:
    text = "Zürich und Köln. " * 20
    assert decode_text(text.encode() + b"\xff", "utf-8") == text + "\ufffd"


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_decides(mark: str) -> None:
    assert decode_text(TEXTS["utf-8"].encode(mark), "iso-8859-1") == TEXTS["utf-8"]
    assert decode_text(b"\xfe\xff" + "Ω".encode("utf-16-be")) == "Ω"


@pytest.mark.parametrize(
    "label", ["rot13", "base64", "zlib", "idna", "punycode", "unicode_escape", "utf-7", "os", "../x", "a" * 99, ""]
)
def test_codecs_that_are_no_charset_are_not_used(label: str) -> None:
    assert known(label) is None
    assert decode_text(b"+AGE- Zm9v \\x41 \xe9", label) == "+AGE- Zm9v \\x41 é"


@given(st.binary(max_size=300), st.sampled_from([*TEXTS, "utf-16", None]))
def test_any_bytes_are_text(noise: bytes, declared: str | None) -> None:
    text = decode_text(noise, declared)
    assert isinstance(plain_text(text), str)
    title, body = html_page(text)
    assert "<|im_end|>" not in title + body
