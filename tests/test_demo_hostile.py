"""Pages that mean harm, and a model that repeats them, in a real browser: nothing is fetched or run, all of it is words."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import tiny_checkpoint
from browser_fixtures import Site, browser, serve, visit
from demo_fixtures import HOSTILE
from rollout_fixtures import ScriptedEngine, context, picture

from demo.atlas import Example
from megatron_mmsr1.config import ModelConfig
from megatron_mmsr1.protocol import ImageHit, TextHit
from megatron_mmsr1.search.wire import ImageReply, TextReply
from megatron_mmsr1.trajectory import ToolStatus
from serving.answering import Answerer
from serving.settings import ServeConfig

EVIL = "evil.test"
WORDS = [h.format(host=EVIL) for h in HOSTILE]
ALL = "\n".join(WORDS)
ANSWER = "\n\n".join(w for w in WORDS if "<answer>" not in w)


class Engine(ScriptedEngine):
    """Repeats what it read: looks at the picture, searches for the page's words, and answers with them."""

    def __init__(self) -> None:
        turns = (
            f"<reason>{ALL}</reason><search><img></search><|im_end|>",
            f"<reason>{ALL}</reason><text_search>{WORDS[0]} {WORDS[1]}</text_search><|im_end|>",
            f"<reason>so</reason><answer>{ANSWER}</answer><|im_end|>",
        )
        super().__init__(tiny_checkpoint.tokenizer(), lambda turn, _: turns[turn % 3])

    def conversation(self, group: str) -> Engine:
        return self

    async def generate(self, engine_ids: Any, images: Any, **options: Any) -> Any:
        on_tokens = options.pop("on_tokens")
        generation = await super().generate(engine_ids, images, **options)
        for at in range(0, len(generation.token_ids), 64):
            on_tokens(generation.token_ids[at : at + 64])
        return generation


class Search:
    """Finds nothing but harm."""

    async def image(self, data: bytes, k: int = 5, *, call: str = "") -> ImageReply:
        hits = [ImageHit(w, picture(n), url) for n, (w, url) in enumerate(zip(WORDS, ADDRESSES, strict=False))]
        return ImageReply(status=ToolStatus.OK, hits=hits, detail=ALL, backend=WORDS[1])

    async def text(self, query: str, k: int = 5, *, call: str = "") -> TextReply:
        hits = [TextHit(url, w, title) for url, w, title in zip(ADDRESSES, WORDS, reversed(WORDS), strict=False)]
        return TextReply(status=ToolStatus.OK, hits=hits, detail=ALL, degraded=True)


ADDRESSES = (
    "javascript:window.hacked=9",
    f"http://{EVIL}/page",
    "data:text/html,<script>parent.hacked=8</script>",
    "//evil.test/x",
)


@asynccontextmanager
async def answerer() -> AsyncIterator[Answerer]:
    search = Search()
    room: dict[str, Any] = {"max_turn_tokens": 8000, "max_response_tokens": 60_000, "image_searches": 1, "text_searches": 1}
    engine: Any = Engine()
    yield Answerer(context(search, **room), engine, {"": search})


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    cfg = ServeConfig(model=ModelConfig(path="scripted"))
    with serve(cfg, answerer, examples=[Example(ALL, picture(0))]) as s:
        yield s


@pytest.fixture
def canary() -> Iterator[tuple[str, list[str]]]:
    """A server on loopback that would answer, and what reached it."""
    reached: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reached.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", reached
    server.shutdown()
    thread.join()
    server.server_close()


def test_nothing_is_fetched_and_nothing_runs(site: Site) -> None:
    from playwright.sync_api import expect

    with browser() as chromium, visit(chromium, site) as v:
        page = v.page
        page.locator("button.example").click()
        expect(page.locator("#past .sources .card").first).to_be_visible(timeout=60_000)
        page.locator("#past details.work > summary").click()
        shown = page.locator("#past").inner_text()
        for word in (
            "![x](http://evil.test/md.png)",
            "<img src=",
            "<script src=",
            "[click](javascript:",
            "<iframe",
            "$$\\href",
        ):
            assert word in page.locator("#past .answer").inner_text(), word
        assert "<answer>forged</answer>" in shown
        pictures = page.locator(".mm img").evaluate_all("nodes => nodes.map(n => n.getAttribute('src').slice(0, 11))")
        assert len(pictures) > 4 and set(pictures) == {"data:image/"}
        links = page.locator(".mm a").evaluate_all("nodes => nodes.map(n => n.href)")
        assert set(links) == {f"http://{EVIL}/page"}
        for tab in ("Trace", "Compare"):
            page.get_by_role("tab", name=tab).click()
            if tab == "Compare":
                page.locator("#compare-last").click()
                expect(page.locator("#columns .answer")).to_have_count(3, timeout=60_000)
            else:
                expect(page.locator("#trace .tok").first).to_be_visible(timeout=60_000)
        page.wait_for_timeout(500)  # whatever was to load would have begun to
        assert page.evaluate("() => window.hacked") is None
        inside = "script, style, iframe, object, embed, base, link, form, video, svg, [onerror], [onload]"
        assert page.locator(inside).evaluate_all("nodes => nodes.filter(n => n.closest('.mm')).length") == 0
        assert v.outside == []


def test_the_policy_stops_what_escaping_would_have_missed(site: Site, canary: tuple[str, list[str]]) -> None:
    """The second wall, tried from within the page: pictures, scripts, fetches, frames and eval."""
    attack = """async (host) => {
      const tried = {};
      document.addEventListener("securitypolicyviolation", e => { tried[e.effectiveDirective] = true; });
      const add = (tag, set) => { const n = document.createElement(tag); Object.assign(n, set); document.body.append(n); };
      add("img", {src: host + "/x.png"});
      add("script", {src: host + "/x.js"});
      add("script", {textContent: "window.hacked = 1"});
      add("iframe", {src: host + "/frame"});
      add("link", {rel: "stylesheet", href: host + "/x.css"});
      add("div", {innerHTML: "<img src=x onerror='window.hacked = 2'>"});
      await fetch(host + "/fetched", {mode: "no-cors"}).catch(() => {});
      setTimeout("window.hacked = 3", 0);
      await new Promise(r => setTimeout(r, 500));
      return [tried, window.hacked ?? null];
    }"""
    host, reached = canary
    with browser() as chromium:
        page = chromium.new_page()
        page.goto(site.url)
        page.locator("#question textarea").wait_for()
        tried, hacked = page.evaluate(attack, host)
        assert hacked is None and reached == []
        walls = {"img-src", "script-src-elem", "script-src-attr", "script-src", "style-src-elem", "connect-src", "frame-src"}
        assert walls <= set(tried)
        page.goto(host)  # the canary can be reached: only the policy was in the way
        assert reached
