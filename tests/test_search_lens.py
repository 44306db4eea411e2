"""The live Lens backends against servers on loopback that speak the vendors' formats."""

from __future__ import annotations

import base64
import io
import json
import logging
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest
from PIL import Image
from search_fixtures import emblem
from starlette.applications import Starlette
from starlette.routing import Route
from vendors.lens import KEY, LensServer, found, refused, serpapi_empty
from vendors.raw import reply

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.image._lens import Lens
from megatron_mmsr1.search.backends.interfaces import ImageResult, SearchFailure
from megatron_mmsr1.search.backends.tools import Tools
from megatron_mmsr1.search.backends.uploaders.signed_route import PREFIX, PublicFiles
from megatron_mmsr1.search.server.compose import make
from megatron_mmsr1.search.server.metrics import Metrics
from megatron_mmsr1.search.upstream.deadline import within
from megatron_mmsr1.search.upstream.ledger import Ledger
from megatron_mmsr1.trajectory import ToolStatus

VENDORS = ("serpapi_lens", "serper_lens")


def photo(seed: int, side: int = 56) -> Image.Image:
    return emblem(random.Random(seed)).resize((side, side))


def jpeg(image: Image.Image, **more: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **more)
    return out.getvalue()


def shown(data: bytes) -> bytes:
    return reply(200, data, {"content-type": "image/jpeg"})


class World:
    """A vendor, the web of thumbnails, and this server's public pictures."""

    def __init__(self, backend: str, **image: Any) -> None:
        self.backend, self._image = backend, image
        self.public = PublicFiles()
        app = Starlette(routes=[Route(PREFIX + "{id}", self.public.serve)])
        self._outside = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://outside.test")
        self.vendor = LensServer(self.look)

    async def look(self, url: str) -> tuple[int, bytes]:
        r = await self._outside.get(url)
        return r.status_code, r.content

    async def __aenter__(self) -> World:
        await self.vendor.__aenter__()
        self.metrics = Metrics()
        self.ledger = Ledger(None, SearchConfig().budget)
        self.lens = self.open(allow=[self.vendor.host])
        return self

    def open(self, allow: list[str], **more: Any) -> Lens:
        image = {
            "backend": self.backend,
            "url": self.vendor.url,
            "uploader": "signed_route",
            "upload": {"base_url": "https://outside.test"},
            "timeout_s": 5.0,
            **self._image,
            **more,
        }
        cfg = SearchConfig.model_validate({"image": image, "fetch": {"allow": allow}})
        return make("image", cfg.image, Tools(cfg, self.metrics, self.ledger, self.public))

    async def __aexit__(self, *_: object) -> None:
        await self.lens.close()
        await self._outside.aclose()
        await self.vendor.__aexit__()

    def find(self, titles: Sequence[str], broken: Sequence[str] = ()) -> None:
        """The vendor finds pages with these titles; the thumbnails of some cannot be had."""
        for n, title in enumerate(titles):
            if title not in broken:
                self.vendor.files[f"/t/{title}.jpg"] = shown(jpeg(photo(n)))
        self.vendor.rows = [(t, f"https://pages.test/{t}", f"{self.vendor.url}/t/{t}.jpg") for t in titles]

    async def failure(self, k: int = 3) -> SearchFailure:
        with pytest.raises(SearchFailure) as failed:
            await self.lens.search(jpeg(photo(0)), k)
        return failed.value


@pytest.fixture(params=VENDORS)
async def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setenv("SERPAPI_API_KEY", KEY)
    monkeypatch.setenv("SERPER_API_KEY", KEY)
    async with World(request.param) as w:
        yield w


def alike(one: Image.Image, other: Image.Image) -> bool:
    """The same picture, up to what JPEG loses."""
    small = [i.convert("L").resize((8, 8)).tobytes() for i in (one, other)]
    return max(abs(a - b) for a, b in zip(*small, strict=True)) < 20


def titles(results: Sequence[ImageResult]) -> list[str]:
    return [r.title for r in results]


# ----------------------------------------------------------------------------------------------------------- what is sent
async def test_the_vendor_is_asked_as_it_documents(world: World) -> None:
    world.find(["a"])
    await world.lens.search(jpeg(photo(0)), 1)
    (ask,) = world.vendor.asked
    if world.backend == "serpapi_lens":
        assert (ask.method, ask.path) == ("GET", "/search.json")
        expected = {"engine": "google_lens", "type": "visual_matches", "country": "us", "hl": "en", "api_key": KEY}
        assert {k: v for k, v in ask.params.items() if k != "url"} == expected
    else:
        assert (ask.method, ask.path, ask.headers["x-api-key"]) == ("POST", "/lens", KEY)
        body = json.loads(ask.body)
        assert {k: v for k, v in body.items() if k != "url"} == {"gl": "us", "hl": "en"}


async def test_no_metadata_of_a_users_picture_leaves_the_machine(world: World) -> None:
    exif = Image.Exif()
    exif[0x010E] = "SECRET-DESCRIPTION"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)  # GPS latitude
    exif[0x0112] = 6  # on its side
    world.find(["a"])
    picture = jpeg(photo(1, 600).resize((600, 1600)), exif=exif, comment=b"SECRET-COMMENT", icc_profile=b"SECRET-PROFILE")
    assert picture.count(b"SECRET") == 3
    await world.lens.search(picture + b"SECRET-TAIL", 1)
    (seen,) = world.vendor.pictures
    assert b"SECRET" not in seen and b"Exif" not in seen
    with Image.open(io.BytesIO(seen)) as image:
        assert image.size == (1024, 384)  # upright, and within query_pixels
        assert not image.getexif()


async def test_the_pictures_url_is_worth_nothing_after_the_search(world: World) -> None:
    world.find(["a"])
    await world.lens.search(jpeg(photo(0)), 1)
    world.vendor.script = [refused(500, {"error": "down"})] * 3
    await world.failure()
    for ask in world.vendor.asked:
        url = ask.params.get("url") or json.loads(ask.body)["url"]
        assert url.startswith("https://outside.test/v1/public/")
        assert (await world.look(url))[0] == 404


async def test_what_is_no_picture_is_refused_and_nobody_is_asked(world: World) -> None:
    for data in (b"", b"no picture", b"<svg/>", jpeg(photo(0))[:200]):
        with pytest.raises(SearchFailure) as failed:
            await world.lens.search(data, 3)
        assert failed.value.status is ToolStatus.REFUSED
    assert world.vendor.asked == []
    assert world.ledger.spent() == []


# ------------------------------------------------------------------------------------------------------- what comes back
async def test_the_best_matches_come_with_their_thumbnails(world: World) -> None:
    world.find(["a", "b", "c", "d"])
    results = await world.lens.search(jpeg(photo(0)), 3)
    assert [(r.title, r.url) for r in results] == [(t, f"https://pages.test/{t}") for t in "abc"]
    for n, result in enumerate(results):
        assert result.image is not None
        with Image.open(io.BytesIO(result.image)) as image:
            assert image.size == (56, 56)
            assert [alike(image, photo(m)) for m in range(4)] == [m == n for m in range(4)]  # the right one at its title
    assert sorted(world.vendor.fetched) == ["/t/a.jpg", "/t/b.jpg", "/t/c.jpg"]  # and none beyond them


async def test_a_thumbnail_that_fails_gives_way_to_the_next_match(world: World) -> None:
    world.find(["gone", "a", "page", "b", "torn", "c", "never"], broken=["gone", "page", "torn"])
    world.vendor.files["/t/page.jpg"] = reply(200, b"<html>", {"content-type": "text/html"})
    world.vendor.files["/t/torn.jpg"] = shown(jpeg(photo(0))[:300])
    results = await world.lens.search(jpeg(photo(0)), 3)
    assert titles(results) == ["a", "b", "c"]
    assert all(r.image for r in results)


async def test_where_pictures_run_out_titles_stand_alone(world: World) -> None:
    world.find(["x", "a", "y", "z"], broken=["x", "y", "z"])
    results = await world.lens.search(jpeg(photo(0)), 3)
    assert [(r.title, r.image is not None) for r in results] == [("x", False), ("a", True), ("y", False)]


async def test_thumbnails_are_fetched_through_the_guard(world: World) -> None:
    world.find(["loopback"])
    world.vendor.rows += [
        ("metadata", "https://pages.test/", "http://169.254.169.254/latest/"),
        ("file", "", "file:///etc/passwd"),
    ]
    guarded = world.open(allow=[])
    results = await guarded.search(jpeg(photo(0)), 5)
    await guarded.close()
    assert [(r.title, r.image) for r in results][:2] == [("loopback", None), ("metadata", None)]
    assert world.vendor.fetched == []


async def test_thumbnails_inside_the_answer_are_taken(world: World) -> None:
    inside = "data:image/jpeg;base64," + base64.b64encode(jpeg(photo(3))).decode()
    world.vendor.rows = [("a", "https://pages.test/a", inside)]
    (result,) = await world.lens.search(jpeg(photo(0)), 5)
    assert result.image is not None
    assert world.vendor.fetched == []


async def test_odd_rows_cost_themselves_only(world: World) -> None:
    world.find(["a"])
    rows: list[Any] = [None, 7, {}, {"title": None, "link": "x"}, {"title": "b", "link": "javascript:alert(1)"}]
    rows.append({"title": 1900, "link": None, "thumbnail": 5, "thumbnailUrl": []})
    world.vendor.script = [found({"search_metadata": {"status": "Success"}, "visual_matches": rows, "organic": rows})]
    assert [(r.title, r.url, r.image) for r in await world.lens.search(jpeg(photo(0)), 5)] == [
        ("b", "", None),
        ("1900", "", None),
    ]


async def test_a_large_thumbnail_is_shrunk_as_the_config_says(world: World) -> None:
    world.vendor.files["/big.jpg"] = shown(jpeg(photo(2, 800)))
    world.vendor.rows = [("a", "https://pages.test/a", f"{world.vendor.url}/big.jpg")]
    small = world.open(allow=[world.vendor.host], thumbnail_pixels=64)
    (result,) = await small.search(jpeg(photo(0)), 1)
    await small.close()
    assert result.image is not None
    assert Image.open(io.BytesIO(result.image)).size == (64, 64)
    assert small.version != world.lens.version


async def test_finding_nothing_is_an_empty_list(world: World) -> None:
    assert await world.lens.search(jpeg(photo(0)), 3) == []
    empty = [serpapi_empty(), found({"search_metadata": {"status": "Success"}, "visual_matches": [], "organic": []})]
    world.vendor.script = [empty[1]] if world.backend == "serper_lens" else [*empty]
    for _ in list(world.vendor.script):
        assert await world.lens.search(jpeg(photo(0)), 3) == []


# ---------------------------------------------------------------------------------------------------------------- errors
BOTH = [
    (refused(400, {"error": "Unsupported image", "message": "Unsupported image"}), ToolStatus.REFUSED, 1),
    (refused(500, {"error": "internal"}), ToolStatus.UPSTREAM_ERROR, 3),
    (reply(503, b"<html>busy</html>", {"content-type": "text/html"}), ToolStatus.UPSTREAM_ERROR, 3),
    (refused(429, {"error": "slow down", "message": "slow down"}, retry_after="0"), ToolStatus.RATE_LIMITED, 3),
    (reply(200, b"<html>hello</html>", {"content-type": "text/html"}), ToolStatus.UPSTREAM_ERROR, 1),
    (reply(200, b"\x00garbage{", {"content-type": "application/json"}), ToolStatus.UPSTREAM_ERROR, 1),
    (reply(200, b'{"organic": [', {"content-type": "application/json", "content-length": "999999"}), None, 1),
    (found(["not", "an", "object"]), ToolStatus.UPSTREAM_ERROR, 1),
    (found({"organic": "text", "visual_matches": "text"}), ToolStatus.UPSTREAM_ERROR, 1),
    (found({}), ToolStatus.UPSTREAM_ERROR, 1),
]


@pytest.mark.parametrize(("answer", "status", "asked"), BOTH)
async def test_what_goes_wrong_has_a_status(world: World, answer: bytes, status: ToolStatus | None, asked: int) -> None:
    world.vendor.script = [answer] * 3
    failure = await world.failure()
    assert failure.status is (status or ToolStatus.UPSTREAM_ERROR)
    assert len(world.vendor.asked) == asked


@pytest.mark.parametrize(
    ("backend", "answer", "status"),
    [
        ("serpapi_lens", refused(429, {"error": "Your account has run out of searches."}), ToolStatus.BUDGET),
        ("serpapi_lens", refused(401, {"error": "Invalid API key."}), ToolStatus.UPSTREAM_ERROR),
        ("serpapi_lens", refused(403, {"error": "deleted"}), ToolStatus.UPSTREAM_ERROR),
        ("serpapi_lens", refused(410, {"error": "expired"}), ToolStatus.UPSTREAM_ERROR),
        ("serpapi_lens", found({"search_metadata": {"status": "Processing"}}), ToolStatus.UPSTREAM_ERROR),
        ("serper_lens", refused(400, {"message": "Not enough credits", "statusCode": 400}), ToolStatus.BUDGET),
        ("serper_lens", refused(403, {"message": "Unauthorized.", "statusCode": 403}), ToolStatus.UPSTREAM_ERROR),
    ],
)
async def test_a_vendors_own_errors(monkeypatch: pytest.MonkeyPatch, backend: str, answer: bytes, status: ToolStatus) -> None:
    monkeypatch.setenv("SERPAPI_API_KEY", KEY)
    monkeypatch.setenv("SERPER_API_KEY", KEY)
    async with World(backend) as world:
        world.vendor.script = [answer] * 3
        assert (await world.failure()).status is status
        assert len(world.vendor.asked) == 1


async def test_a_rest_that_was_asked_for_is_kept_and_the_next_try_succeeds(world: World) -> None:
    world.find(["a"])
    world.vendor.script = [refused(429, {"error": "slow down"}, retry_after="0.2")]
    assert titles(await world.lens.search(jpeg(photo(0)), 1)) == ["a"]
    assert len(world.vendor.asked) == 2


@pytest.mark.long
async def test_a_vendor_that_is_silent_is_a_timeout_and_the_deadline_holds_for_thumbnails(world: World) -> None:
    world.vendor.script = [30.0]
    slow = world.open(allow=[world.vendor.host], timeout_s=0.2)
    with pytest.raises(SearchFailure) as failed:
        await slow.search(jpeg(photo(0)), 1)
    assert failed.value.status is ToolStatus.TIMEOUT
    await slow.close()

    world.find(["a", "b"])
    world.vendor.files["/t/a.jpg"] = shown(jpeg(photo(0)))[:-50]  # never ends
    async with within(8, "the call"):
        results = await world.lens.search(jpeg(photo(0)), 2)
    assert [(r.title, r.image is not None) for r in results] == [("a", False), ("b", True)]


async def test_neither_key_nor_link_is_ever_said(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    quoted: list[str] = []

    async def quote(url: str) -> tuple[int, bytes]:
        quoted.append(url)
        return 404, b""

    world.vendor._look = quote
    await world.lens.search(jpeg(photo(0)), 1)  # to learn what a link looks like
    for length in range(0, 400, 37):  # wherever our own cap cuts it off
        words = f"{'x' * length} could not load {quoted[0]} with key {KEY}"
        world.vendor.script = [refused(400, {"error": words, "message": words})]
        failure = await world.failure()
        for said in (failure.detail, str(failure), repr(failure), repr(failure.__context__), caplog.text):
            assert "outside.test" not in said and "/v1/public" not in said and KEY[:12] not in said


# -------------------------------------------------------------------------------------------------------------- settings
async def test_settings_that_lack_are_named_at_the_start(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"search\.image\.uploader"):
        world.open([], uploader="none")
    with pytest.raises(UsageError, match=r"search\.image\.options\.q"):
        world.open([], options={"q": 1})
    with pytest.raises(UsageError, match=r"search\.image\.url"):
        world.open([], url="vendor.test")
    with pytest.raises(UsageError, match="NO_SUCH_KEY"):
        world.open([], key="NO_SUCH_KEY")
    monkeypatch.delenv("SERPAPI_API_KEY")
    monkeypatch.delenv("SERPER_API_KEY")
    with pytest.raises(UsageError, match=r"SERP(API|ER)_API_KEY"):
        world.open([])


async def test_no_key_is_in_a_version(world: World) -> None:
    assert KEY not in world.lens.version
    assert world.open([], country="de").version != world.lens.version
