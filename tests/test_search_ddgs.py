"""The ddgs backend. What it scrapes no loopback server can speak for, so the library's own `text` is replaced here."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest
from ddgs.ddgs import DDGS
from ddgs.exceptions import DDGSException, RatelimitException, TimeoutException
from vendors.all import SPECS
from vendors.bench import QUERY, Bench

from megatron_mmsr1.search.backends.interfaces import SearchFailure, TextResult
from megatron_mmsr1.search.upstream import upstream
from megatron_mmsr1.trajectory import ToolStatus

SPEC = dataclasses.replace(SPECS["serper"], backend="ddgs")
ROWS = [{"title": "Zurimo", "href": "https://towns.test/z", "body": "a town"}, {"title": 5, "href": None}, "x"]


def bench(monkeypatch: pytest.MonkeyPatch, text: Callable[..., Any], **section: Any) -> Bench:
    monkeypatch.setattr(upstream, "BACKOFF_S", 0.001)
    monkeypatch.setattr(DDGS, "text", lambda _, *args, **kwargs: text(*args, **kwargs))
    return Bench(SPEC, "http://127.0.0.1:9", section)


async def test_what_is_asked_and_how_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def text(*args: Any, **kwargs: Any) -> Any:
        seen.extend([args, kwargs, threading.current_thread().name.partition("_")[0]])
        return ROWS

    async with bench(monkeypatch, text, country="de", language="fr") as b:
        assert await b.ask() == [TextResult("https://towns.test/z", "Zurimo", "a town", 1.0)]
        assert "region=de-fr" in b.backend.version
    expected = {"max_results": 5, "region": "de-fr", "safesearch": "moderate", "backend": "auto"}
    assert seen == [(QUERY,), expected, "ddgs"]
    async with bench(monkeypatch, text, options={"region": "wt-wt", "backend": "mojeek"}) as b:
        await b.ask()
    assert (seen[4]["region"], seen[4]["backend"]) == ("wt-wt", "mojeek")


@pytest.mark.parametrize(
    ("trouble", "status"),
    [
        (DDGSException("No results found."), None),
        (RatelimitException("202 Ratelimit"), ToolStatus.RATE_LIMITED),
        (TimeoutException("timed out"), ToolStatus.TIMEOUT),
        (DDGSException("RequestError: connection closed"), ToolStatus.UPSTREAM_ERROR),
        (AttributeError("'NoneType' object has no attribute 'text'"), ToolStatus.UPSTREAM_ERROR),
    ],
)
async def test_its_exceptions(monkeypatch: pytest.MonkeyPatch, trouble: Exception, status: ToolStatus | None) -> None:
    seen: list[str] = []

    def text(query: str, **_: Any) -> Any:
        seen.append(query)
        raise trouble

    async with bench(monkeypatch, text, retries=0) as b:
        outcome = await b.outcome()
    assert outcome == [] if status is None else isinstance(outcome, SearchFailure) and outcome.status is status
    assert seen == [QUERY]


@pytest.mark.parametrize("said", [None, {}, "x", 5])
async def test_another_shape(monkeypatch: pytest.MonkeyPatch, said: Any) -> None:
    async with bench(monkeypatch, lambda *_, **__: said) as b:
        outcome = await b.outcome()
    assert isinstance(outcome, SearchFailure)
    assert outcome.status is ToolStatus.UPSTREAM_ERROR


async def test_a_hanging_scrape_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    async with bench(monkeypatch, lambda *_, **__: go.wait(30), timeout_s=0.1) as b:
        outcome = await b.outcome()
        assert isinstance(outcome, SearchFailure)
        assert outcome.status is ToolStatus.TIMEOUT
        go.set()
