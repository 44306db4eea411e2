"""Thumbnails: fetched through the guard, decoded within caps, encoded anew; nothing of the original's bytes is passed on."""

from __future__ import annotations

import base64
import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from hostile import World, canary, chunk, http, png, zlib_bomb
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from megatron_mmsr1.config.search import FetchSection
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.fetch import Fetcher, Reason, Refused
from megatron_mmsr1.search.web.pictures import (
    MAX_ASPECT,
    MAX_PIXELS,
    MAX_SCANS,
    decode,
    fetch_thumbnail,
    from_data_uri,
    reencode,
)
from megatron_mmsr1.trajectory import ToolStatus


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)  # type: ignore[arg-type]
    return out.getvalue()


def photo(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x % 256, y % 256, (x + y) % 256], -1).astype(np.uint8))


def size(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        return image.size


@pytest.mark.long
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize(("given", "want"), [((900, 600), (300, 200)), ((200, 100), (200, 100)), ((1, 1), (1, 1))])
def test_every_format_comes_back_within_the_side(kind: str, given: tuple[int, int], want: tuple[int, int]) -> None:
    data = reencode(encoded(photo(*given), kind), 300)
    assert size(data) == want
    assert data[:3] == b"\xff\xd8\xff" or data[:4] == b"\x89PNG"
    assert data == reencode(encoded(photo(*given), kind), 300)


def test_photos_become_jpeg_and_drawings_png() -> None:
    assert reencode(encoded(photo(400, 400), "PNG"), 400).startswith(b"\xff\xd8")
    assert reencode(encoded(Image.new("RGB", (400, 400), "red"), "JPEG"), 400).startswith(b"\x89PNG")


def test_what_an_eye_sees_is_kept_and_metadata_is_not() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "SECRET exif"
    text = PngInfo()
    text.add_text("Comment", "SECRET text", zip=False)
    pictures = [
        encoded(photo(300, 200), "JPEG", exif=exif, comment=b"SECRET comment", icc_profile=b"SECRET profile"),
        encoded(photo(300, 200), "PNG", pnginfo=text),
        encoded(photo(300, 200), "PNG") + b"SECRET behind the end <script>",
        encoded(photo(300, 200), "WEBP", xmp=b"SECRET xmp", exif=exif),
    ]
    for data in pictures:
        assert b"SECRET" in data
        assert b"SECRET" not in reencode(data, 1000)
    assert size(reencode(pictures[0], 1000)) == (200, 300)


@pytest.mark.long
def test_only_the_first_of_thousands_of_frames_is_decoded() -> None:
    frame = Image.new("P", (64, 64))
    data = encoded(frame, "GIF", save_all=True, append_images=[Image.new("P", (64, 64), i % 250 + 1) for i in range(3_000)])
    assert size(reencode(data, 32)) == (32, 32)


def scans(n: int) -> bytes:
    """A progressive JPEG of which one scan is told over and over."""
    data = encoded(photo(64, 64), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * n + data[-2:]


def webp(kind: bytes, width: int, height: int) -> bytes:
    """A header that claims a size, and next to nothing behind it."""
    w, h = width - 1, height - 1
    body = {
        b"VP8X": bytes(4) + w.to_bytes(3, "little") + h.to_bytes(3, "little"),
        b"VP8L": b"\x2f" + (w | h << 14).to_bytes(4, "little") + bytes(5),
        b"VP8 ": b"\x10\x02\x00\x9d\x01\x2a" + struct.pack("<HH", width, height),
    }[kind]
    chunks = b"WEBP" + kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def gif(screen: int, frame: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", screen, screen, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + b"," + struct.pack("<HHHHB", 0, 0, frame, frame, 0) + b"\x02\x02\x4c\x01\x00;"


def jpeg(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


BIG = 10_000  # a side; 100 megapixels
BOMB = zlib_bomb(200 * 2**20)
HOSTILE = {
    "an honest PNG": png(BIG, BIG),
    "a PNG's header": png(BIG, BIG, pixels=b""),
    "a PNG of 2**31": png(2**31 - 1, 2**31 - 1, pixels=b""),
    "a JPEG's header": jpeg(BIG, BIG),
    "a JPEG of a thousand scans": scans(1_000),
    "VP8X": webp(b"VP8X", 16_384, 16_384),
    "VP8L": webp(b"VP8L", BIG, BIG),
    "VP8": webp(b"VP8 ", BIG, BIG),
    "a GIF's screen": gif(BIG, 1),
    "a GIF's frame": gif(10, BIG),
    "a BMP's header": b"BM" + struct.pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, BIG, BIG, 1, 24, 0, 0, 0, 0, 0, 0),
    "a compressed text": png(8, 8, chunk(b"zTXt", b"Comment\0\0" + BOMB)),
    "a compressed profile": png(8, 8, chunk(b"iCCP", b"x\0\0" + BOMB)),
    "an international text": png(8, 8, chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB)),
    "a torn PNG": png(64, 64)[:-40],
    "a torn JPEG": encoded(photo(64, 64), "JPEG")[:-200],
    "TIFF": encoded(photo(8, 8), "TIFF"),
    "ICO": encoded(photo(16, 16), "ICO"),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "SVG with entities": b'<!DOCTYPE svg [<!ENTITY a "b"><!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&a;&x;</svg>',
    "HTML": b"<html><img src=x></html>",
    "GIF and JavaScript": b"GIF89a=1;alert(1)//",
    "PNG and HTML": b"\x89PNG\r\n\x1a\n<script>alert(1)</script>",
    "nothing": b"",
    "a strip": encoded(Image.new("RGB", (3_000, 2)), "PNG"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures_are_refused(name: str) -> None:
    with pytest.raises(SearchFailure) as e:
        reencode(HOSTILE[name], 512)
    assert e.value.status is ToolStatus.REFUSED


def test_refusing_takes_little_memory_and_the_largest_picture_a_quarter_of_a_gigabyte() -> None:
    code = (
        "import contextlib, resource, sys; sys.path.insert(0, 'tests');"
        "from test_search_thumbnails import HOSTILE, reencode, png, SearchFailure;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024;"
        "largest = png(5600, 5600); a = peak();\n"
        "for data in HOSTILE.values():\n"
        "    with contextlib.suppress(SearchFailure): reencode(data, 512)\n"
        "b = peak(); reencode(largest, 512); print(b - a, peak() - a)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    refused, largest = map(int, done.stdout.split())
    assert refused < 100
    assert largest < 350
    assert 0.97 * MAX_PIXELS < 5600 * 5600


def test_real_progressive_pictures_stay_below_the_scans() -> None:
    assert encoded(photo(500, 500), "JPEG", progressive=True).count(b"\xff\xda") < MAX_SCANS / 4
    assert reencode(scans(1), 64) == reencode(encoded(photo(64, 64), "JPEG", progressive=True), 64)


def test_a_webp_s_size_is_read_as_its_decoder_reads_it() -> None:
    for options in ({}, {"lossless": True}, {"exif": b"Exif\0\0torn"}):
        for mode in ("RGB", "RGBA"):
            data = encoded(Image.new(mode, (16_383, 3), "red"), "WEBP", **options)
            assert decode(data).size == (16_383, 3)


@given(
    st.binary(max_size=400),
    st.sampled_from([encoded(photo(40, 30), k) for k in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]),
    st.data(),
)
def test_any_bytes_are_a_small_picture_or_refused(noise: bytes, whole: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(whole)))
    for data in (noise, whole[:at] + noise, whole[:at] + noise + whole[at + len(noise) :]):
        try:
            assert max(size(reencode(data, 20))) <= 20
        except SearchFailure as e:
            assert e.status is ToolStatus.REFUSED


def test_the_longest_picture_that_is_one() -> None:
    assert size(reencode(encoded(Image.new("RGB", (MAX_ASPECT, 1)), "PNG"), 512)) == (MAX_ASPECT, 1)


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "IMAGE/WebP; x=y"])  # what it says matters less than what it is
async def test_fetched_through_the_guard(kind: str) -> None:
    async with canary(http(encoded(photo(900, 600), "PNG"), content_type=kind)) as bird:
        fetcher = Fetcher(FetchSection(), World(bird))
        assert size(await fetch_thumbnail(fetcher, "http://site.test/a.png", 90)) == (90, 60)
        with pytest.raises(Refused) as e:
            await fetch_thumbnail(fetcher, "http://127.0.0.1/a.png", 90)
        assert e.value.reason is Reason.ADDRESS
        assert bird.connections == 1


@pytest.mark.parametrize("kind", ["image/svg+xml", "text/html", "image/tiff", "image/x-icon", "application/octet-stream"])
async def test_what_is_no_picture_s_type_is_not_read(kind: str) -> None:
    async with canary(http(encoded(photo(9, 9), "PNG"), content_type=kind)) as bird:
        with pytest.raises(Refused) as e:
            await fetch_thumbnail(Fetcher(FetchSection(), World(bird)), "http://site.test/a.png", 90)
        assert e.value.reason is Reason.CONTENT_TYPE


async def test_a_picture_within_the_answer_is_decoded_and_nothing_is_fetched() -> None:
    data = encoded(photo(90, 60), "PNG")
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    assert from_data_uri(uri) == data
    async with canary() as bird:
        world = World(bird)
        assert size(await fetch_thumbnail(Fetcher(FetchSection(), world), uri.replace("data", "DATA", 1), 30)) == (30, 20)
        for broken in ("data:image/png,x", "data:image/png;base64,*", "data:", "data:image/png;base64," + "A" * 30_000_000):
            with pytest.raises(SearchFailure) as e:
                await fetch_thumbnail(Fetcher(FetchSection(), world), broken, 30)
            assert e.value.status is ToolStatus.REFUSED
        assert not bird.connections
