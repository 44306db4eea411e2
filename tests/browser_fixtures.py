"""A real Chromium that reaches nothing but one loopback server, and the app on such a server, in a thread of its own."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from serving.settings import ServeConfig

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NO_BROWSER = "no browser on PATH: apt-get install chromium, and these tests run"


@contextmanager
def browser() -> Iterator[Any]:
    """Playwright over the machine's own browser; skips where there is none."""
    path = next((p for name in BROWSERS if (p := shutil.which(name))), None)
    if path is None:
        pytest.skip(NO_BROWSER)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield found
        found.close()


@dataclass
class Site:
    """The app, served."""

    url: str
    app: Any
    live: Any
    loop: asyncio.AbstractEventLoop
    engine: Any = None


@contextmanager
def serve(cfg: ServeConfig, answerer: Callable[[], AbstractAsyncContextManager[Any]], **options: Any) -> Iterator[Site]:
    """The app over what `answerer` opens, in an event loop of its own; ends with it."""
    import uvicorn
    from fastapi import FastAPI

    from demo.app import mount

    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    ready: list[Site] = []
    up = threading.Event()
    failed: list[BaseException] = []
    server: list[uvicorn.Server] = []

    async def main() -> None:
        async with answerer() as a:
            app = mount(FastAPI(), cfg, a, **options)
            server.append(uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)))
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            ready.append(Site(url, app, app.state.demo, asyncio.get_running_loop(), a.engine))
            up.set()
            await server[0].serve(sockets=[sock])

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as e:  # told to the test, which waits for it
            failed.append(e)
        finally:
            up.set()

    thread = threading.Thread(target=run, name="app")
    thread.start()
    try:
        up.wait(120)
        if failed or not ready:
            raise RuntimeError("the app did not start") from (failed[0] if failed else None)
        yield ready[0]
    finally:
        for s in server:
            s.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@dataclass
class Page:
    """A tab of the browser in which nothing but `site` exists. `outside`: what it asked of others; `said`: errors."""

    page: Any
    outside: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def reload(self) -> None:
        """Loads the app again. Requests that this ends, Gradio reports as errors of the page that is left."""
        self.require_no_errors()
        self.page.reload()
        self.page.locator("#question textarea").wait_for()
        self.said.clear()

    def require_no_errors(self) -> None:
        assert not [s for s in self.said if "Content Security Policy" in s or "Error" in s], self.said


@contextmanager
def visit(chromium: Any, site: Site, **options: Any) -> Iterator[Page]:
    """Opens the app. On leaving, asserts that nothing else was asked for anything and that no policy was broken."""
    context = chromium.new_context(**{"viewport": {"width": 1100, "height": 900}, **options})
    context.set_default_timeout(30_000)
    try:
        page = Page(context.new_page())
        ours = urlsplit(site.url).netloc

        def throttle(route: Any) -> None:
            if urlsplit(route.request.url).netloc == ours:
                route.continue_()
            else:
                page.outside.append(route.request.url)
                route.abort()

        context.route("**/*", throttle)
        page.page.on("websocket", lambda w: page.outside.append(w.url))
        page.page.on("console", lambda m: page.said.append(m.text) if m.type == "error" else None)
        page.page.on("pageerror", lambda e: page.said.append(str(e)))
        page.page.on("popup", lambda p: page.outside.append(f"popup {p.url}"))
        page.page.goto(site.url)
        page.page.locator("#question textarea").wait_for()
        yield page
        assert not page.outside
        page.require_no_errors()
    finally:
        context.close()


def axe_source(directory: Path) -> str:
    """axe-core's script, installed from the lock file; skips where npm is missing or reaches no registry."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is missing (apt-get install npm): the accessibility test needs axe-core from it")
    here = Path(__file__).parent / "browser"
    for name in ("package.json", "package-lock.json"):
        shutil.copy(here / name, directory / name)
    done = subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=directory, capture_output=True, text=True, timeout=180
    )
    if done.returncode != 0:
        pytest.skip(f"npm could not install axe-core: {done.stderr.strip()[-300:]}")
    return (directory / "node_modules" / "axe-core" / "axe.min.js").read_text()


@asynccontextmanager
async def opened(stack: Any) -> AsyncIterator[Any]:
    """The answerer of a stack that is opened in the running loop."""
    async with stack as s:
        yield s.answerer
