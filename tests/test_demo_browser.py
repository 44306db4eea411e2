"""The app in a real Chromium over a real engine and a real search, with the shipped Atlas model: what a person does with it."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from browser_fixtures import Site, axe_source, browser, opened, serve, visit
from conftest import launch_engine
from test_demo_runs import a_run

from demo.atlas import CHECKPOINT, examples, prepare
from megatron_mmsr1.search.server.launch import launch as launch_search
from serving.settings import ServeConfig
from serving.stack import open_stack

WAIT = 60_000  # for an answer, on a machine that others use too
TABS = ("Chat", "Compare", "Trace", "Replay")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as b:
        yield b


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    directory = tmp_path_factory.mktemp("demo")
    a_run(directory / "runs" / "learning")
    return prepare(directory).model_copy(update={"runs": str(directory / "runs")})


@pytest.fixture(scope="module")
def sites(chromium: Any, cfg: ServeConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Site]]:
    """Over one engine: the app with its search ("app"), and with one that takes minutes ("slow"), which on a busy machine must
    be given up by whoever stops it and not by a deadline."""
    patient = cfg.model_copy(update={"rollout": cfg.rollout.model_copy(update={"tool_timeout_s": 240.0})})
    logs = tmp_path_factory.mktemp("logs")
    with ExitStack() as stack:
        engine = stack.enter_context(launch_engine(CHECKPOINT, logs / "engine.log", cfg.engine))
        found: dict[str, Site] = {}
        for name, latency in (("app", 0.0), ("slow", 180.0)):
            search_cfg = cfg.search.model_copy(update={"latency_s": latency, "deadline_s": 200.0})
            search = stack.enter_context(launch_search(search_cfg, cache_path=None, log=logs / f"{name}.log"))

            def answerer(url: str = search.url) -> Any:
                return opened(open_stack(patient, engines=[engine.url], search=url))

            found[name] = stack.enter_context(serve(cfg, answerer))
        yield found


@pytest.fixture(scope="module")
def site(sites: dict[str, Site]) -> Site:
    return sites["app"]


@pytest.fixture(scope="module")
def both(cfg: ServeConfig) -> tuple[str, bytes, str]:
    """A question that needs both searches, its picture, and what is right."""
    import pyarrow.parquet as pq

    first = examples(cfg.search.corpus)[0]
    assert first.picture is not None and cfg.search.corpus is not None
    rows = pq.read_table(Path(cfg.search.corpus) / "heldout.parquet").to_pylist()
    data = first.picture
    row = next(r for r in rows if r["prompt"][0]["content"] == first.question and r["images"][0]["bytes"] == data)
    assert row["extra_info"]["kind"] == "both"
    return first.question, data, row["reward_model"]["ground_truth"]


def upload(page: Any, data: bytes, box: str = "#question") -> None:
    page.locator(f"{box} input[type=file]").set_input_files({"name": "emblem.png", "mimeType": "image/png", "buffer": data})
    page.locator(f"{box} .thumbnail-item img").wait_for()


def done(page: Any, text: str) -> None:
    """The answer is there, and all is quiet."""
    from playwright.sync_api import expect

    expect(page.locator("#past .answer").last).to_have_text(text, timeout=WAIT)
    expect(page.locator("#stop")).to_be_hidden(timeout=WAIT)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def idle(site: Site) -> bool:
    return site.live.running == 0 and not any(site.engine.balance._load.values())


def test_upload_ask_two_searches_answer_sources(chromium: Any, site: Site, both: tuple[str, bytes, str]) -> None:
    from playwright.sync_api import expect

    question, picture, right = both
    with visit(chromium, site) as v:
        page = v.page
        drawn = page.locator("button.example img").evaluate_all(
            "nodes => Promise.all(nodes.map(n => n.decode().then(() => n.naturalWidth)))"
        )
        assert len(drawn) == 7 and set(drawn) <= {56, 560}  # emblems, and the canvas of a crop question
        upload(page, picture)
        page.locator("#question textarea").fill(question)
        page.locator("#question .submit-button").click()
        done(page, right)
        assert page.locator("#past .ask img").count() == 1
        work = page.locator("#past details.work")
        assert work.get_attribute("open") is None and "2 searches" in work.locator("summary").first.inner_text()
        work.locator("summary").first.click()
        kinds = [t.split("\n")[0] for t in work.locator(".lookup summary").all_inner_texts()]
        assert [k.split()[0] for k in kinds] == ["Image", "Text"]
        assert work.locator(".thumbs img").count() == 2 and work.locator(".hits li").count() >= 1
        cards = page.locator("#past .card")
        assert cards.count() >= 3 and right in page.locator("#past .card.supports").first.inner_text()
        for link in page.locator("#past .card a").all():
            assert set((link.get_attribute("rel") or "").split()) == {"noopener", "noreferrer", "nofollow"}
            assert (link.get_attribute("href") or "").startswith("http://atlas.test/")
        expect(page.locator("#status")).to_have_text(f"Answer: {right}")
        assert page.locator("#status").get_attribute("role") == "status"


def test_a_follow_up_keeps_the_picture(chromium: Any, site: Site, both: tuple[str, bytes, str]) -> None:
    from playwright.sync_api import expect

    _, _, right = both
    with visit(chromium, site) as v:
        page = v.page
        page.locator("button.example").first.click()
        done(page, right)
        found = page.locator("#past .thumbs").first.inner_html()
        page.get_by_role("button", name="Options").click()
        page.get_by_label("Always").check()
        page.locator("#question textarea").fill("which name has this place ?")
        page.locator("#question textarea").press("Enter")
        expect(page.locator("#past .turn")).to_have_count(2, timeout=WAIT)
        expect(page.locator("#past .turn").last.locator(".lookup").first).to_be_attached(timeout=WAIT)
        assert page.locator("#past .turn").last.locator(".thumbs").first.inner_html() == found
        page.locator("#new").click()
        expect(page.locator(".turn")).to_have_count(0)
        expect(page.locator("button.example").first).to_be_visible()


def test_a_pasted_picture_and_search_switched_off(chromium: Any, site: Site, both: tuple[str, bytes, str]) -> None:
    from playwright.sync_api import expect

    question, picture, _ = both
    paste = """([node, data]) => {
      const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
      const items = new DataTransfer();
      items.items.add(new File([bytes], "pasted.png", {type: "image/png"}));
      node.dispatchEvent(new ClipboardEvent("paste", {clipboardData: items, bubbles: true, cancelable: true}));
    }"""
    with visit(chromium, site) as v:
        page = v.page
        box = page.locator("#question textarea").element_handle()
        page.evaluate(paste, [box, base64.b64encode(picture).decode()])
        page.locator("#question .thumbnail-item img").wait_for()
        page.get_by_role("button", name="Options").click()
        page.get_by_label("Off", exact=True).check()
        page.locator("#question textarea").fill(question)
        page.locator("#question textarea").press("Enter")
        expect(page.locator("#past .answer")).to_have_count(1, timeout=WAIT)
        assert page.locator("#past .lookup").count() == 0 and page.locator("#past .card").count() == 0
        assert page.locator("#past .ask img").count() == 1


def test_stop_in_mid_run_frees_everything(chromium: Any, sites: dict[str, Site]) -> None:
    from playwright.sync_api import expect

    slow = sites["slow"]
    with visit(chromium, slow) as v:
        page = v.page
        page.locator("button.example").first.click()
        expect(page.locator("#now .lookup.running")).to_be_visible(timeout=WAIT)
        assert slow.live.running == 1
        page.locator("#stop").click()
        until(lambda: idle(slow))
        expect(page.locator("#past .note").last).to_have_text("Stopped.")
        expect(page.locator("#stop")).to_be_hidden()
        page.locator("#question textarea").fill("what year was bimo founded ?")
        expect(page.locator("#question .submit-button")).to_be_enabled()


def test_who_leaves_in_mid_run_frees_everything(chromium: Any, sites: dict[str, Site]) -> None:
    from playwright.sync_api import expect

    slow = sites["slow"]
    with visit(chromium, slow) as v:
        v.page.locator("button.example").first.click()
        expect(v.page.locator("#now .lookup.running")).to_be_visible(timeout=WAIT)
        assert slow.live.running == 1
    until(lambda: idle(slow))


def test_what_cannot_be_asked_is_told(chromium: Any, site: Site) -> None:
    from playwright.sync_api import expect

    with visit(chromium, site) as v:
        page = v.page
        page.locator("#question input[type=file]").set_input_files(
            {"name": "x.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\nbroken"}
        )
        page.locator("#question .thumbnail-item").wait_for()
        page.locator("#question textarea").fill("what is this ?")
        page.locator("#question textarea").press("Enter")
        expect(page.get_by_text("no picture that can be read")).to_be_visible(timeout=WAIT)
        assert page.locator(".turn").count() == 0 and idle(site)


def test_a_picture_stays_until_its_question_is_written(chromium: Any, site: Site, both: tuple[str, bytes, str]) -> None:
    from playwright.sync_api import expect

    question, picture, right = both
    with visit(chromium, site) as v:
        page = v.page
        upload(page, picture)
        page.locator("#question .submit-button").click()
        expect(page.get_by_text("Write a question to go with it.")).to_be_visible(timeout=WAIT)
        page.locator("#question textarea").fill(question)
        page.locator("#question textarea").press("Enter")
        done(page, right)


def test_compare_three_ways(chromium: Any, site: Site, both: tuple[str, bytes, str]) -> None:
    from playwright.sync_api import expect

    question, picture, right = both
    with visit(chromium, site) as v:
        page = v.page
        page.get_by_role("tab", name="Compare").click()
        upload(page, picture, "#compare-question")
        page.locator("#compare-question textarea").fill(question)
        page.locator("#compare-question .submit-button").click()
        expect(page.locator("#compare-stop")).to_be_hidden(timeout=WAIT)
        expect(page.locator("#columns details.work")).to_have_count(3, timeout=WAIT)
        answers = [page.locator(f"#column-{n} .answer").inner_text() for n in range(3)]
        searches = [page.locator(f"#column-{n} .lookup").count() for n in range(3)]
        assert answers[0] == answers[2] == right != answers[1] and searches[0] == 2 and searches[1] == 0 and searches[2] >= 1


def test_trace_shows_every_turn_and_how_sure_the_model_was(chromium: Any, site: Site, both: tuple[str, bytes, str]) -> None:
    from playwright.sync_api import expect

    with visit(chromium, site) as v:
        page = v.page
        page.get_by_role("tab", name="Trace").click()
        expect(page.locator("#trace")).to_contain_text("Ask something in the chat first")
        page.get_by_role("tab", name="Chat").click()
        page.locator("button.example").first.click()
        done(page, both[2])
        page.get_by_role("tab", name="Trace").click()
        expect(page.locator("#trace .said")).to_have_count(6)
        assert (
            page.locator("#trace .said.assistant .tok.on").count() > 10 and page.locator("#trace .said.tool .tok").count() == 0
        )
        assert page.locator("#trace .tokens img").count() == 3
        assert "<answer>" in page.locator("#trace").inner_text()
        page.locator("#trace-mode").get_by_label("Log-probability").check()
        expect(page.locator("#trace .trace.p")).to_be_visible()
        assert re.fullmatch(
            r"p 0\.\d+, log-prob -\d\.\d+|p 1\.000, log-prob -?0\.000", page.locator(".tok[title]").first.get_attribute("title")
        )


def test_replay_walks_through_a_run(chromium: Any, site: Site) -> None:
    from playwright.sync_api import expect

    with visit(chromium, site) as v:
        page = v.page
        page.get_by_role("tab", name="Replay").click()
        heading = page.locator("#replay-point h2")
        expect(heading).to_have_text("before training", timeout=WAIT)
        page.locator("#replay-next").click()
        expect(heading).to_have_text("step 0")
        page.locator("#replay-prompt input").click()
        page.get_by_role("option", name=re.compile("p0")).click()
        expect(heading).to_have_text("before training")
        slider = page.locator("#replay-at input[type=range]")
        slider.focus()
        for _ in range(8):
            slider.press("ArrowRight")
        expect(heading).to_have_text("evaluation after step 6")
        expect(page.locator("#replay-point .answers li.right")).to_have_text("✓ bimo")
        expect(page.locator("#replay-charts .bar.here")).to_have_count(2)
        expect(page.locator("#replay-trace .tok").first).to_be_visible()
        assert page.locator("#replay-charts .bar").count() == 2 * 15


def test_light_dark_and_narrow(chromium: Any, site: Site, both: tuple[str, bytes, str]) -> None:
    shade = "() => getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
    with visit(chromium, site, viewport={"width": 360, "height": 740}, color_scheme="dark") as v:
        page = v.page
        assert page.evaluate(shade) < 150
        page.locator("button.example").first.click()
        done(page, both[2])
        for tab in TABS:
            if not page.get_by_role("tab", name=tab).is_visible():
                page.locator(".overflow-menu button").first.click()
            page.get_by_role("tab", name=tab).or_(page.locator(".overflow-dropdown button", has_text=tab)).first.click()
            page.wait_for_timeout(300)
            wide = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, f"{tab} is {wide} pixels wider than the screen"
        page.locator("#theme-switch").click()
        assert page.evaluate(shade) > 600
        v.reload()
        assert page.evaluate(shade) > 600


def test_the_keyboard_is_enough(chromium: Any, site: Site, both: tuple[str, bytes, str]) -> None:
    from playwright.sync_api import expect

    with visit(chromium, site) as v:
        page = v.page

        def tab_to(selector: str) -> None:
            for _ in range(60):
                page.keyboard.press("Tab")
                if page.evaluate("s => document.activeElement !== null && document.activeElement.matches(s)", selector):
                    return
            raise AssertionError(f"{selector} cannot be reached by Tab")

        tab_to("button.example")
        page.keyboard.press("Enter")
        done(page, both[2])
        page.locator("#top").click()
        tab_to("#past details.work > summary")
        page.keyboard.press("Enter")
        expect(page.locator("#past details.work")).to_have_attribute("open", "")
        tab_to("#question textarea")
        page.keyboard.type("what colour is the field ?")
        page.keyboard.press("Enter")
        expect(page.locator("#past .turn")).to_have_count(2, timeout=WAIT)
        page.get_by_role("tab", name="Chat").focus()
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tab", name="Compare")).to_have_attribute("aria-selected", "true")


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return axe_source(tmp_path_factory.mktemp("axe"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(chromium: Any, site: Site, both: tuple[str, bytes, str], axe: str, scheme: str) -> None:
    with visit(chromium, site, color_scheme=scheme) as v:
        page = v.page

        def check(where: str) -> None:
            page.wait_for_timeout(300)  # colours fade in
            found = page.evaluate(f"async () => {{ {axe}; return await axe.run(document) }}")
            assert len(found["passes"]) > 15  # it did look
            bad = [f for f in found["violations"] if f["impact"] in ("serious", "critical")]
            assert not bad, where + ": " + "; ".join(f"{f['id']}: {[n['html'][:160] for n in f['nodes'][:3]]}" for f in bad)

        check("welcome")
        page.get_by_role("button", name="Options").click()
        page.locator("button.example").first.click()
        done(page, both[2])
        page.locator("#past details.work > summary").click()
        check("answer")
        page.get_by_role("tab", name="Compare").click()
        page.locator("#compare-example").click()
        page.locator("#columns .card").first.wait_for(timeout=WAIT)
        check("compare")
        page.get_by_role("tab", name="Trace").click()
        page.locator("#trace-mode").get_by_label("Log-probability").check()
        page.locator("#trace .trace.p").wait_for()
        page.locator("#trace details.table summary").first.click()
        check("trace")
        page.get_by_role("tab", name="Replay").click()
        page.locator("#replay-trace .tok").first.wait_for(timeout=WAIT)
        check("replay")
