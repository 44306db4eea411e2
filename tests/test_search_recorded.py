"""Recorded image searches: what their files hold, the conversion, and the backend that looks results up."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import json
import pickle
import shutil
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pickle_fixtures import jpeg, pickled, picture, raw
from PIL import Image, PngImagePlugin
from search_fixtures import png

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.config.search import FetchSection, ImageSection
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.image.recorded import Recorded, make
from megatron_mmsr1.search.backends.recorded_convert import Report, convert
from megatron_mmsr1.search.backends.recorded_source import read
from megatron_mmsr1.search.backends.tools import Tools
from megatron_mmsr1.search.server.metrics import Metrics
from megatron_mmsr1.search.upstream.ledger import Ledger

PROTOCOLS = range(6)


# ------------------------------------------------------------------------------------------------------------- sources
def entry(titles: list[Any], pictures: list[Any]) -> dict[str, list[Any]]:
    return {"tool_returned_web_title_list": titles, "tool_returned_images_urls": pictures}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
def test_pictures_inside_the_pickle_keep_their_pixels(tmp_path: Path, mode: str, protocol: int) -> None:
    image = picture(3).convert(mode)
    source = pickled(tmp_path, {"a": entry(["title"], [image])}, protocol)
    (found,) = read(source)["a"]
    assert isinstance(found.picture, bytes)
    with Image.open(io.BytesIO(found.picture)) as back:
        assert back.convert("RGB").tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_metadata_of_pictures_is_read_over(tmp_path: Path, protocol: int) -> None:
    image = Image.open(io.BytesIO(png(picture(3))))
    image.info |= {"Title": PngImagePlugin.iTXt("words", "en", "key"), "dpi": (Fraction(72, 1), 72.0), "exif": b"GPS"}
    (found,) = read(pickled(tmp_path, {"a": entry(["title"], [image])}, protocol))["a"]
    assert isinstance(found.picture, bytes) and b"GPS" not in found.picture


def test_a_pil_image_that_is_not_whole_costs_its_picture_only(tmp_path: Path) -> None:
    states: list[Any] = [
        [{}, "RGB", (4, 4), None, b"short"],
        [{}, "RGB", (10**6, 10**6), None, b""],
        [{}, "RGB", (-1, -1), None, b""],
        [{}, "RGB", "44", None, b""],
        [{}, ["RGB"], (1, 1), None, b"abc"],
        [{}, "P", (1, 1), [999], b"a"],
        [{}, "P", (1, 1), 10**13, b"a"],
        ["nothing"],
        {"a": 1},
    ]
    # By hand, since no PIL image would be written so.
    body = b"".join(b"cPIL.Image\nImage\n)\x81" + pickle.dumps(s, 2)[2:-1] + b"b" for s in states)
    titles = pickle.dumps([f"t{n}" for n in range(len(states))], 2)[2:-1]
    source = raw(
        tmp_path,
        b"\x80\x02}Va\n}(Vtool_returned_web_title_list\n" + titles + b"Vtool_returned_images_urls\n](" + body + b"eus.",
    )
    found = read(source)["a"]
    assert [f.title for f in found] == [f"t{n}" for n in range(len(states))]
    assert all(f.picture is None and f.lost for f in found)


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ([], "mapping"),
        ({"a": ["x"]}, "entry 'a'"),
        ({"a": {"other": []}}, "tool_returned_web_title_list"),
        ({"a": entry(["t"], "x")}, "not a list"),  # type: ignore[arg-type]
        ({"a": entry(["t"], [5])}, "picture 0"),
    ],
)
def test_another_form_is_said_to_be_one(tmp_path: Path, held: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read(pickled(tmp_path, held))


# ---------------------------------------------------------------------------------------------------------- conversion
def rows(directory: Path, ids: list[str], pictures: list[bytes]) -> Path:
    path = directory / "rows.parquet"
    table = pa.table({"data_id": ids, "images": [[{"bytes": p, "path": None}] for p in pictures], "prompt": ["?"] * len(ids)})
    pq.write_table(table, path)
    return path


def opened(directory: Path) -> Recorded:
    cfg = SearchConfig()
    section = ImageSection(backend="recorded", options={"path": str(directory)})
    return make(section, Tools(cfg, Metrics(), Ledger(None, cfg.budget)))


QUESTIONS = [png(picture(n)) for n in range(4)]
IDS = [f"fvqa_train_{n}" for n in range(4)]


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """As FVQA's release is: PIL images, URLs, an entry without results, one of another data set."""
    big = picture(9).resize((1400, 700))
    return pickled(
        tmp_path,
        {
            IDS[0]: entry(["a tower", "the same tower", "no picture"], [big, Image.open(io.BytesIO(jpeg(picture(8)))), None]),
            IDS[1]: entry(["by URL"], ["https://thumbnails.test/1"]),
            IDS[2]: entry([], []),
            "another_0": entry(["x"], ["y"]),
        },
    )


async def test_the_released_form_is_converted_and_found_by_the_questions_picture(tmp_path: Path, released: Path) -> None:
    out = tmp_path / "out"
    report = convert(released, [rows(tmp_path, IDS, QUESTIONS)], out)
    assert (report.entries, report.rows, report.recorded, report.hits, report.pictures) == (4, 4, 3, 4, 2)
    assert (report.entries_without_row, report.rows_without_entry) == (1, 1)
    assert report.missing == {"was not recorded": 1, "is a URL, and nothing was downloaded": 1}
    assert json.loads(json.dumps(dataclasses.asdict(report)))["missing"] == report.missing
    assert "3 pictures can be looked up" in str(report) and "it was not recorded" in str(report)

    backend = opened(out)
    hits = await backend.search(QUESTIONS[0], 5)
    assert [h.title for h in hits] == ["a tower", "the same tower", "no picture"]
    first, second, third = (h.image for h in hits)
    assert first is not None and second is not None and third is None
    assert Image.open(io.BytesIO(first)).size == (512, 256)
    assert Image.open(io.BytesIO(second)).size == (56, 56)
    assert len(await backend.search(QUESTIONS[0], 1)) == 1
    assert [(h.title, h.url) for h in await backend.search(QUESTIONS[1], 5)] == [("by URL", "https://thumbnails.test/1")]
    assert await backend.search(QUESTIONS[2], 5) == []  # recorded, and nothing was found
    assert await backend.search(QUESTIONS[3], 5) == []  # never recorded
    assert await backend.search(b"no picture at all", 5) == []


@pytest.mark.long
def test_the_same_conversion_writes_the_same_and_another_has_another_version(tmp_path: Path, released: Path) -> None:
    parquet = rows(tmp_path, IDS, QUESTIONS)
    convert(released, [parquet], tmp_path / "one")
    convert(released, [parquet], tmp_path / "two")
    convert(released, [parquet], tmp_path / "two")
    names = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*"))
    assert names == sorted(p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*"))
    assert opened(tmp_path / "one").version == opened(tmp_path / "two").version
    convert(released, [rows(tmp_path, IDS[:1], QUESTIONS[:1])], tmp_path / "two")
    assert opened(tmp_path / "one").version != opened(tmp_path / "two").version


async def test_rows_that_share_a_picture_share_its_results(tmp_path: Path) -> None:
    source = pickled(tmp_path, {IDS[0]: entry(["first"], [None]), IDS[1]: entry(["second"], [None])})
    report = convert(source, [rows(tmp_path, [IDS[3], *IDS[:2]], [QUESTIONS[0]] * 3)], tmp_path / "out")
    assert (report.recorded, report.rows_without_entry, report.entries_without_row) == (1, 1, 0)
    assert [h.title for h in await opened(tmp_path / "out").search(QUESTIONS[0], 5)] == ["first"]


async def test_picture_files_are_found_below_their_directory_and_nowhere_else(tmp_path: Path) -> None:
    images = tmp_path / "cached_images"
    (images / "train").mkdir(parents=True)
    (images / "train" / "a.jpg").write_bytes(jpeg(picture(7)))
    (images / "torn.jpg").write_bytes(jpeg(picture(7))[:100])
    (tmp_path / "outside.png").write_bytes(png(picture(6)))
    (images / "link.png").symlink_to(tmp_path / "outside.png")
    paths = {
        "train/a.jpg": "",
        "/data/of/another/machine/cached_images/train/a.jpg": "",
        "torn.jpg": "cannot be decoded",
        "../outside.png": "is outside of --images",
        "train/../../outside.png": "is outside of --images",
        "link.png": "is outside of --images",
        "nul\0.png": "is outside of --images",
        "x" * 5000: "cannot be read",
        str(tmp_path / "outside.png"): "is not in --images",
        "missing.png": "is not in --images",
    }
    source = tmp_path / "cache.json"
    record = {"tool_returned_web_title": list(paths), "cached_images_path": list(paths)}
    source.write_text(json.dumps({IDS[0]: record, IDS[1]: {"tool_returned_web_title": ["t"], "cached_images_path": [None]}}))
    parquet = rows(tmp_path, IDS, QUESTIONS)
    with pytest.raises(UsageError, match="--images"):
        convert(source, [parquet], tmp_path / "out")
    report = convert(source, [parquet], tmp_path / "out", images)
    hits = await opened(tmp_path / "out").search(QUESTIONS[0], 50)
    assert {n: h.image is not None for n, h in zip(paths, hits, strict=True)} == {n: not why for n, why in paths.items()}
    expected = [why for why in paths.values() if why] + ["was not recorded"]
    assert report.missing == {why: expected.count(why) for why in expected}


@pytest.fixture
def thumbnails() -> Iterator[str]:
    """host:port of a server with /ok.jpg, and 404 for the rest."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = jpeg(picture(5)) if self.path == "/ok.jpg" else b"gone"
            self.send_response(200 if self.path == "/ok.jpg" else 404)
            self.send_header("content-type", "image/jpeg")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_urls_are_downloaded_through_the_guard_if_that_is_asked_for(tmp_path: Path, thumbnails: str) -> None:
    urls = [f"http://{thumbnails}/ok.jpg", f"http://{thumbnails}/gone.jpg", "http://169.254.169.254/latest/meta-data"]
    source = pickled(tmp_path, {IDS[0]: entry(["ok", "gone", "evil"], urls)})
    parquet = rows(tmp_path, IDS, QUESTIONS)

    def converted(allow: list[str]) -> Report:
        return convert(source, [parquet], tmp_path / "out", fetch=FetchSection(allow=allow))

    report = converted([thumbnails])
    assert report.pictures == 1
    assert report.missing == {"could not be downloaded: empty": 1, "could not be downloaded: refused": 1}
    assert converted([]).missing == {"could not be downloaded: refused": 3}  # loopback is not the public internet


def test_rows_that_do_not_fit_are_named(tmp_path: Path, released: Path) -> None:
    with pytest.raises(UsageError, match=r"fvqa_train_0.*rows\.parquet"):
        convert(released, [rows(tmp_path, ["other_1"], QUESTIONS[:1])], tmp_path / "out")
    pq.write_table(pa.table({"problem": ["x"]}), tmp_path / "odd.parquet")
    with pytest.raises(UsageError, match="data_id and images"):
        convert(released, [tmp_path / "odd.parquet"], tmp_path / "out")
    with pytest.raises(UsageError, match=r"no data file at .*nothing\.parquet"):
        convert(released, [tmp_path / "nothing.parquet"], tmp_path / "out")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UsageError, match=r"torn\.parquet"):
        convert(released, [tmp_path / "torn.parquet"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------- backend
def test_a_directory_that_is_no_recording_is_refused_at_the_start(tmp_path: Path, released: Path) -> None:
    with pytest.raises(UsageError, match="mmsr1 search convert"):
        opened(tmp_path)
    out = tmp_path / "out"
    convert(released, [rows(tmp_path, IDS, QUESTIONS)], out)
    listing = (out / "recorded.jsonl").read_text()
    key = hashlib.sha256(b"x").hexdigest()
    for bad in ("{", "[]", '{"key": "x", "hits": []}', json.dumps({"key": key, "hits": [{"title": "t", "url": ""}]})):
        (out / "recorded.jsonl").write_text(listing + bad + "\n")
        with pytest.raises(UsageError, match=r"recorded\.jsonl:4"):
            opened(out)
    for file in ("../secret", "/etc/passwd", "images/../../x", "images/aa/x.jpg"):
        (out / "recorded.jsonl").write_text(json.dumps({"key": key, "hits": [{"title": "t", "url": "", "file": file}]}))
        with pytest.raises(UsageError, match=r"recorded\.jsonl:1"):
            opened(out)
    (out / "recorded.jsonl").write_text(listing)
    shutil.rmtree(out / "images")
    with pytest.raises(UsageError, match="missing"):
        opened(out)
