"""A picture's public URL: there while a search needs it, for whoever holds the whole link, and gone afterwards."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from vendors.s3 import ACCESS, REGION, SECRET, S3Server

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.config.search import ImageSection
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.backends.tools import Tools
from megatron_mmsr1.search.backends.uploaders import Uploader, open_uploader
from megatron_mmsr1.search.backends.uploaders.signed_route import PREFIX, PublicFiles
from megatron_mmsr1.search.server.metrics import Metrics
from megatron_mmsr1.search.upstream.ledger import Ledger
from megatron_mmsr1.trajectory import ToolStatus

PICTURE = b"\xff\xd8 not really a picture"


@pytest.fixture
async def s3() -> AsyncIterator[S3Server]:
    async with S3Server() as server:
        yield server


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def opened(uploader: str, upload: dict[str, Any], public: PublicFiles | None = None) -> Uploader:
    cfg = SearchConfig()
    section = ImageSection.model_validate({"backend": "serpapi_lens", "uploader": uploader, "upload": upload})
    return open_uploader(section, Tools(cfg, Metrics(), Ledger(None, cfg.budget), public))


def bucket(s3: S3Server, **more: Any) -> Uploader:
    return opened("s3", {"endpoint": s3.url, "bucket": "pictures", "region": REGION, **more})


async def get(url: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.get(url)


# ------------------------------------------------------------------------------------------------------------------- s3
async def test_the_object_is_there_for_the_block_and_gone_after_it(s3: S3Server) -> None:
    uploader = bucket(s3, prefix="mmsr1/lens/")
    async with uploader.public(PICTURE, "image/jpeg") as url:
        seen = await get(url)
        assert (seen.status_code, seen.content, seen.headers["content-type"]) == (200, PICTURE, "image/jpeg")
        assert urlsplit(url).path.startswith("/pictures/mmsr1/lens/")
        assert urlsplit(url).path.endswith(".jpg")
        # The link is worth nothing without its signature, or with another object's name.
        assert (await get(url.partition("?")[0])).status_code == 403
        assert (await get(url.replace("/mmsr1/lens/", "/mmsr1/lens/x"))).status_code == 403
    await uploader.close()
    assert s3.objects == {}
    assert s3.seen[-1][0] == "DELETE"


async def test_names_are_not_repeated_and_links_end(s3: S3Server) -> None:
    uploader = bucket(s3, expires_s=30)
    async with uploader.public(PICTURE, "image/png") as one, uploader.public(PICTURE, "image/png") as other:
        assert urlsplit(one).path != urlsplit(other).path
        assert parse_qs(urlsplit(one).query)["X-Amz-Expires"] == ["30"]
        s3.clock_ahead = timedelta(seconds=31)
        assert (await get(one)).status_code == 403
    await uploader.close()


async def test_it_is_deleted_whatever_ends_the_search(s3: S3Server) -> None:
    uploader = bucket(s3)
    with pytest.raises(SearchFailure, match="the vendor is down"):
        async with uploader.public(PICTURE, "image/jpeg"):
            raise SearchFailure(ToolStatus.UPSTREAM_ERROR, "the vendor is down")
    await uploader.close()
    assert s3.objects == {}

    async def hang() -> None:
        async with uploader.public(PICTURE, "image/jpeg"):
            await asyncio.Event().wait()

    task = asyncio.create_task(hang())
    while not s3.objects:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await uploader.close()
    assert s3.objects == {}
    assert [m for m, _ in s3.seen].count("DELETE") == 2


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (404, "NoSuchBucket")])
async def test_a_refused_upload_says_where_and_why_but_no_key_and_no_link(
    s3: S3Server, caplog: pytest.LogCaptureFixture, status: int, code: str
) -> None:
    caplog.set_level(logging.DEBUG)
    s3.fail = (status, code)
    uploader = bucket(s3)
    with pytest.raises(SearchFailure) as failed:
        async with uploader.public(PICTURE, "image/jpeg"):
            pass
    await uploader.close()
    said = str(failed.value)
    assert failed.value.status is ToolStatus.UPSTREAM_ERROR
    assert "pictures" in said and s3.url in said and code in said
    for secret in (ACCESS, SECRET, "X-Amz"):
        assert secret not in said and secret not in caplog.text


async def test_an_upload_that_hangs_is_a_timeout(s3: S3Server) -> None:
    s3.stall = True
    uploader = bucket(s3, timeout_s=0.2)
    with pytest.raises(SearchFailure) as failed:
        async with uploader.public(PICTURE, "image/jpeg"):
            pass
    assert failed.value.status is ToolStatus.TIMEOUT
    await uploader.close()


async def test_keys_come_by_name_and_are_named_where_they_lack(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UsageError, match="AWS_SECRET_ACCESS_KEY"):
        bucket(s3)
    monkeypatch.setenv("MY_SECRET", SECRET)
    uploader = bucket(s3, secret_key="MY_SECRET")
    async with uploader.public(PICTURE, "image/jpeg") as url:
        assert (await get(url)).status_code == 200
    await uploader.close()


async def test_a_wrong_secret_is_found_out_by_the_store(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(SearchFailure, match="SignatureDoesNotMatch"):
        async with bucket(s3).public(PICTURE, "image/jpeg"):
            pass


# --------------------------------------------------------------------------------------------------------- signed_route
class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def shown(files: PublicFiles) -> httpx.AsyncClient:
    app = Starlette(routes=[Route(PREFIX + "{id}", files.serve, methods=["GET", "POST"])])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://outside.test")


async def test_a_signed_link_shows_the_picture_while_the_search_runs() -> None:
    files = PublicFiles()
    uploader = opened("signed_route", {"base_url": "https://outside.test/mm/"}, files)
    async with shown(files) as http:
        async with uploader.public(PICTURE, "image/jpeg") as url:
            assert url.startswith("https://outside.test/mm/v1/public/")
            link = url.removeprefix("https://outside.test/mm")
            r = await http.get(link)
            assert (r.status_code, r.content) == (200, PICTURE)
            assert r.headers["content-type"] == "image/jpeg"
            assert (r.headers["x-content-type-options"], r.headers["cache-control"]) == ("nosniff", "no-store")
            head = await http.head(link)
            assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(PICTURE)))
            assert (await http.post(link)).status_code == 405
        assert (await http.get(link)).status_code == 404


async def test_no_link_but_the_whole_one_shows_it() -> None:
    clock = Clock()
    files = PublicFiles(clock=clock)
    link = files.put(PICTURE, "image/jpeg", 60)
    other = files.put(b"other", "image/jpeg", 60)
    path, _, query = link.partition("?")
    exp, sig = (p.partition("=")[2] for p in query.split("&"))
    wrong = [
        path,
        f"{path}?exp={exp}",
        f"{path}?sig={sig}",
        f"{path}?exp={exp}&sig=",
        f"{path}?exp={exp}&sig={sig[:-1]}",
        f"{path}?exp={exp}&sig={sig[:-1]}{'0' if sig[-1] != '0' else '1'}",
        f"{path}?exp={exp}&sig=\u00e9",
        f"{path}?exp={int(exp) + 1000}&sig={sig}",
        f"{path}?exp=-1&sig={sig}",
        f"{path}?exp={'9' * 5000}&sig={sig}",
        f"{path}?exp=\u0662&sig={sig}",
        f"{other.partition('?')[0]}?{query}",
        f"{PREFIX}nothing?{query}",
    ]
    async with shown(files) as http:
        for bad in wrong:
            assert (await http.get(bad)).status_code == 404, bad
        assert (await http.get(link)).status_code == 200
        assert (await http.get(PublicFiles(clock=clock).put(PICTURE, "image/jpeg", 60))).status_code == 404  # another's key
        clock.now += 62
        assert (await http.get(link)).status_code == 404


def test_no_more_is_shown_at_once_than_the_cap_and_what_expired_makes_room() -> None:
    clock = Clock()
    files = PublicFiles(max_bytes=10, clock=clock)
    link = files.put(b"12345", "image/jpeg", 60)
    files.put(b"1234", "image/jpeg", 600)
    with pytest.raises(SearchFailure) as full:
        files.put(b"12345", "image/jpeg", 60)
    assert full.value.status is ToolStatus.RATE_LIMITED
    clock.now += 100
    files.put(b"12345", "image/jpeg", 60)
    files.remove(link)  # gone already: removing it again frees nothing twice
    with pytest.raises(SearchFailure):
        files.put(b"12", "image/jpeg", 60)


# ------------------------------------------------------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("uploader", "upload", "says"),
    [
        ("none", {}, "search.image.uploader"),
        ("s3", {}, "search.image.upload.bucket"),
        ("s3", {"bucket": "b", "endpoint": "ftp://x"}, "search.image.upload.endpoint"),
        ("s3", {"bucket": "b", "buckett": 1}, "search.image.upload.buckett"),
        ("signed_route", {}, "search.image.upload.base_url"),
        ("signed_route", {"base_url": "http://user@host"}, "search.image.upload.base_url"),
    ],
)
def test_settings_that_are_wrong_are_named(uploader: str, upload: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        opened(uploader, upload, PublicFiles())


def test_a_process_that_serves_nothing_cannot_show_pictures() -> None:
    with pytest.raises(UsageError, match="search server"):
        opened("signed_route", {"base_url": "https://outside.test"}, None)
