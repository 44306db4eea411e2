#!/usr/bin/env python
"""Take the README's picture of the app and record a search in progress, from the real app in a real browser.

    python scripts/record_demo.py                     starts `mmsr1 demo` itself, offline, with a slow search to look at
    python scripts/record_demo.py --url http://...    an app that runs already

Needs chromium (apt-get install chromium) and playwright (in the `dev` extra). Writes docs/images/demo.png and demo.webp.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from megatron_mmsr1.procs.http import answers

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
LATENCY_S = 1.6  # added to each search, so that it can be seen
SIZE: Any = {"width": 960, "height": 720}
FRAME_S = 0.1  # between drawings that are kept
MAX_BYTES = 3_000_000
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="an app that runs already")
    url = parser.parse_args().url
    browser = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    if browser is None:
        sys.exit("record_demo: no browser on PATH: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    IMAGES.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        url = url or stack.enter_context(_demo())
        chromium = stack.enter_context(sync_playwright()).chromium.launch(executable_path=browser, args=FLAGS)
        page = chromium.new_page(viewport=SIZE, color_scheme="light")
        page.goto(url)
        page.locator("button.example").first.wait_for()
        film = Film(page)
        _play(page, film)
        film.write(IMAGES / "demo.webp")
        page.close()
        shot = chromium.new_page(viewport={"width": 1100, "height": 1130}, color_scheme="light", device_scale_factor=2)
        shot.goto(url)
        _still(shot, IMAGES / "demo.png")
        chromium.close()


class Film:
    """What the browser drew, with the time of each drawing."""

    def __init__(self, page: Any):
        self._page = page
        self._frames: list[tuple[float, bytes]] = []
        self._cdp = page.context.new_cdp_session(page)
        self._cdp.on("Page.screencastFrame", self._keep)
        self._cdp.send("Page.startScreencast", {"format": "png", "everyNthFrame": 1})

    def _keep(self, event: dict[str, Any]) -> None:
        at = float(event["metadata"]["timestamp"])
        if not self._frames or at - self._frames[-1][0] >= FRAME_S:
            self._frames.append((at, base64.b64decode(event["data"])))
        else:  # the newest of a moment counts
            self._frames[-1] = (self._frames[-1][0], base64.b64decode(event["data"]))
        self._cdp.send("Page.screencastFrameAck", {"sessionId": event["sessionId"]})

    def roll(self, seconds: float) -> None:
        self._page.wait_for_timeout(1000 * seconds)

    def until(self, selector: str) -> None:
        self._page.locator(selector).first.wait_for(timeout=60_000)

    def write(self, path: Path) -> None:
        """As an animated WebP that fits in MAX_BYTES; equal frames in a row are one."""
        shown: list[tuple[float, bytes]] = []
        for at, data in self._frames:
            if not shown or shown[-1][1] != data:
                shown.append((at, data))
        ends = [at for at, _ in shown[1:]] + [self._frames[-1][0] + 2.5]
        lasts = [max(20, round(1000 * (end - at))) for (at, _), end in zip(shown, ends, strict=True)]
        first, *rest = [Image.open(io.BytesIO(data)).convert("RGB") for _, data in shown]
        for quality in (80, 65, 50, 35):
            first.save(path, save_all=True, append_images=rest, duration=lasts, loop=0, quality=quality, method=4)
            if path.stat().st_size <= MAX_BYTES:
                break
        print(f"{path}: {sum(lasts) / 1000:.1f} s, {len(lasts)} frames, {path.stat().st_size / 1e6:.2f} MB")


def _play(page: Any, film: Film) -> None:
    """A question with both searches, then its follow-up look at the tokens."""
    film.roll(1.2)
    page.locator("button.example").first.hover()
    film.roll(0.6)
    page.locator("button.example").first.click()
    film.until("#past .sources")
    film.roll(2.0)
    page.locator("#past details.work > summary").click()
    film.roll(2.6)
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-last").click()
    film.until("#column-0 .sources")
    film.roll(2.0)
    page.get_by_role("tab", name="Trace").click()
    page.locator("#trace .tok").first.wait_for()
    film.roll(1.0)
    page.locator("#trace-mode").get_by_label("Log-probability").check()
    film.roll(2.0)


def _still(page: Any, path: Path) -> None:
    """An answer with its steps open."""
    page.locator("button.example").first.click()
    page.locator("#past .sources").wait_for(timeout=60_000)
    page.locator("#past details.work > summary").click()
    page.mouse.move(0, 0)
    page.evaluate("() => { document.activeElement?.blur(); window.scrollTo(0, 0); }")
    page.wait_for_timeout(600)
    page.screenshot(path=path)
    image = Image.open(path).convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    print(f"{path}: {image.width}x{image.height}, {path.stat().st_size / 1e6:.2f} MB")


@contextlib.contextmanager
def _demo() -> Iterator[str]:
    """`mmsr1 demo` on a free port, until it is no longer needed."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    options = [f"gateway.port={port}", f"search.latency_s={LATENCY_S}", "--state", str(ROOT / "build" / "record")]
    process = subprocess.Popen([sys.executable, "-m", "megatron_mmsr1.cli", "demo", *options], cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 300
        while not answers(url, timeout_s=2):
            if process.poll() is not None or time.monotonic() > end:
                sys.exit("record_demo: mmsr1 demo did not start; see above")
            time.sleep(0.5)
        yield url
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)


if __name__ == "__main__":
    main()
