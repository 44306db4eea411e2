"""The report from a disk and the page of a run that goes on, in a real Chromium: on a phone and a desk, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser_fixtures import axe_source, browser
from report_fixtures import make_run, write_steps
from test_watch import watching

from megatron_mmsr1.report import report

SHADE = "() => getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as b:
        yield b


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of one run, of two beside each other, and of two seeds."""
    root = tmp_path_factory.mktemp("runs")
    runs = [make_run(root, name=name, seed=seed)[0] for seed, name in enumerate("ab")]
    return {
        "one": report(runs[0]),
        "two": report(runs, root / "two.html"),
        "seeds": report(runs, root / "seeds.html", seeds=True),
    }


@contextmanager
def opened(chromium: Any, url: str, **options: Any) -> Iterator[Any]:
    """A tab; on leaving, nothing but `url` and what lies below it was asked for, and nothing was said of errors or policies."""
    context = chromium.new_context(**{"viewport": {"width": 1100, "height": 900}, **options})
    context.set_default_timeout(30_000)
    asked: list[str] = []
    said: list[str] = []
    try:
        page = context.new_page()
        page.on("request", lambda r: asked.append(r.url))
        page.on("console", lambda m: said.append(m.text))
        page.on("pageerror", lambda e: said.append(str(e)))
        page.on("dialog", lambda d: said.append(f"dialog {d.message}"))
        page.goto(url)
        page.locator("svg.plot").first.wait_for()
        yield page
        assert not said and not [a for a in asked if not a.startswith((url, "data:image/png;base64,"))], (said, asked)
    finally:
        context.close()


def wider_than_the_screen(page: Any) -> int:
    return page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize("which", ["one", "two", "seeds"])
def test_the_page_fits_and_has_the_reader_s_colours(
    chromium: Any, files: dict[str, Path], which: str, width: int, scheme: str
) -> None:
    view = {"width": width, "height": 800}
    with opened(chromium, files[which].as_uri(), viewport=view, color_scheme=scheme) as page:
        assert (page.evaluate(SHADE) < 150) == (scheme == "dark")
        for d in page.locator("summary").all():
            if d.is_visible():
                d.click()
        assert page.locator("article[data-tags] .turn").first.is_visible()
        assert wider_than_the_screen(page) <= 0
        assert page.locator("svg.plot").count() >= 15
        assert (page.locator("svg .band").count() > 0) == (which == "seeds")
        assert page.locator("svg .alarm").count() > 0 or which == "seeds"


def test_the_axis_is_switched_by_mouse_and_keyboard(chromium: Any, files: dict[str, Path]) -> None:
    with opened(chromium, files["one"].as_uri()) as page:
        figure = page.locator("figure", has=page.get_by_text("Reward and accuracy", exact=True))
        plot = figure.locator("svg")
        assert "along step" in plot.get_attribute("aria-label")
        page.get_by_role("button", name="sampled tokens").click()
        assert "along sampled tokens" in plot.get_attribute("aria-label")
        page.get_by_role("button", name="hours").focus()
        page.keyboard.press("Enter")
        assert "along hours" in plot.get_attribute("aria-label")
        page.get_by_role("button", name="steps").press("Enter")
        plot.focus()
        page.keyboard.press("Home")
        assert figure.locator(".values").inner_text().startswith("step 0")
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert figure.locator(".values").inner_text().startswith("step 3")
        page.keyboard.press("End")
        assert figure.locator(".values").inner_text().startswith("step 9")
        box = plot.bounding_box()
        page.mouse.move(box["x"] + 60, box["y"] + 50)
        assert figure.locator(".values").inner_text().startswith("step 0")


def test_examples_are_filtered(chromium: Any, files: dict[str, Path]) -> None:
    from playwright.sync_api import expect

    with opened(chromium, files["one"].as_uri()) as page:
        every = page.locator("article[data-tags]")
        assert every.count() == 10 and not page.locator("article details[open]").count()
        tags = [(a.get_attribute("data-tags") or "").split() for a in every.all()]
        for chosen in (["right"], ["wrong"], ["right", "searched"], ["changed"]):
            for name in chosen:
                page.get_by_role("button", name=name, exact=True).click()
            expected = sum(set(chosen) <= set(t) for t in tags)
            expect(page.locator("#shown")).to_have_text(f"{expected} of 10")
            assert len([a for a in every.all() if a.is_visible()]) == expected > 0
            for name in chosen:
                page.get_by_role("button", name=name, exact=True).click()
        expect(page.locator("#shown")).to_have_text("10 of 10")


def test_a_run_that_grows_is_shown_without_a_reload(chromium: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    run, cfg = make_run(tmp_path, steps=3)
    with watching(run) as s, opened(chromium, s.url) as page:
        figure = page.locator("figure", has=page.get_by_text("Reward and accuracy", exact=True))
        expect(page.locator("#state")).to_contain_text("3 of 3 steps. The run last wrote")
        expect(page.locator("#news")).to_be_hidden()
        page.evaluate("() => { window.same = true; }")
        write_steps(run, cfg, range(3, 6))
        expect(page.locator("#state")).to_contain_text("6 of 3 steps")
        figure.locator("svg").focus()
        page.keyboard.press("End")
        expect(figure.locator(".values")).to_contain_text("step 5")
        expect(page.locator("#alarms")).to_contain_text("logprob_gap, steps 4 to 5, and still")
        assert page.evaluate("() => window.same")  # the same page all the while
        expect(page.locator("#news")).to_be_visible()
        page.locator("#again").click()
        expect(page.locator("#news")).to_be_hidden()
        write_steps(run, cfg, range(4, 5))  # it starts again two steps before
        expect(page.locator("#state")).to_contain_text("5 of 3 steps")


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return axe_source(tmp_path_factory.mktemp("axe"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["one", "two"])
def test_axe_finds_nothing_serious(chromium: Any, files: dict[str, Path], axe: str, which: str, scheme: str) -> None:
    with opened(chromium, files[which].as_uri(), color_scheme=scheme) as page:
        for d in page.locator("summary").all():
            if d.is_visible():
                d.click()
        found = page.evaluate(f"async () => {{ {axe}; return await axe.run(document) }}")
        assert len(found["passes"]) > 15  # it did look
        bad = [f for f in found["violations"] if f["impact"] in ("serious", "critical")]
        assert not bad, "; ".join(f"{f['id']}: {[n['html'][:160] for n in f['nodes'][:3]]}" for f in bad)
