"""An upstream over a real connection: concurrency, caps, the breaker, cancelled bodies; what HTTP codes and headers mean."""

from __future__ import annotations

import asyncio
import math
import time
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vendors.all import SPECS
from vendors.bench import QUERY, Bench
from vendors.server import Asked, Reply, Vendor, always, answer, in_turn
from vendors.spec import KEY

from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.upstream.exchange import classify, message, retry_after
from megatron_mmsr1.trajectory import ToolStatus

SERPER = SPECS["serper"]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERPER.key_name, KEY)


def statuses(done: list[Any]) -> list[str]:
    return sorted(str(d.status) if isinstance(d, SearchFailure) else "found" for d in done)


async def test_the_vendor_never_sees_more_at_once_than_the_config_says() -> None:
    async with Vendor(SERPER.found, latency=0.02) as vendor, Bench(SERPER, vendor.url, {"concurrency": 7}) as bench:
        done = await asyncio.gather(*(bench.outcome() for _ in range(70)))
    assert set(statuses(done)) == {"found"}
    assert (vendor.peak, len(vendor.requests)) == (7, 70)


async def test_the_vendor_sees_calls_no_faster_than_the_config_says() -> None:
    async with Vendor(SERPER.found) as vendor, Bench(SERPER, vendor.url, {"per_second": 50}) as bench:
        started = time.monotonic()
        await asyncio.gather(*(bench.outcome() for _ in range(21)))
    assert len(vendor.requests) == 21
    assert max(r.at for r in vendor.requests) - started >= 0.99 * 20 / 50


async def test_a_vendor_that_asks_for_a_second_gets_it() -> None:
    limited = Reply(b"", 429, {"retry-after": "1"})
    async with Vendor(in_turn(limited, SERPER.found)) as vendor, Bench(SERPER, vendor.url) as bench:
        first = asyncio.create_task(bench.outcome())
        while not bench.metrics.upstreams.of("serper").statuses:
            await asyncio.sleep(0.01)
        assert await bench.ask() == SERPER.gives  # another call, which waits as well
        assert await first == SERPER.gives
    told, *others = (r.at for r in vendor.requests)
    assert len(others) == 2
    assert all(at - told >= 0.95 for at in others)


async def test_it_opens_when_the_vendor_dies_and_closes_when_it_is_back() -> None:
    section = {"breaker_failures": 3, "breaker_cooldown_s": 0.3, "retries": 0}
    async with Vendor(SERPER.found) as vendor, Bench(SERPER, vendor.url, section) as bench:
        assert await bench.ask() == SERPER.gives
        vendor.kill()
        assert statuses([await bench.outcome() for _ in range(3)]) == ["upstream_error"] * 3
        vendor.revive()
        told = await bench.outcome()
        assert "left alone" in told.detail
        assert len(vendor.requests) == 1
        await asyncio.sleep(0.4)
        vendor.latency = 0.2
        done = await asyncio.gather(*(bench.outcome() for _ in range(50)))
        assert statuses(done) == ["found"] + ["upstream_error"] * 49
        assert len(vendor.requests) == 2
        assert await bench.ask() == SERPER.gives
    turns = bench.metrics.upstreams.of("serper").breaker_turns
    assert turns == {"open": 1, "half_open": 1, "closed": 1}
    assert b'mmsr1_search_upstream_breaker{backend="serper"} 0.0' in bench.metrics.render()


async def test_connections_that_the_vendor_closed_are_not_used_again() -> None:
    async with Vendor(SERPER.found) as vendor, Bench(SERPER, vendor.url, {"retries": 0}) as bench:
        for _ in range(3):
            assert await asyncio.gather(*(bench.ask() for _ in range(5))) == [SERPER.gives] * 5
            vendor.kill()
            vendor.revive()
            await asyncio.sleep(0.05)


async def test_cancelled_bodies_leave_the_pool_whole() -> None:
    section = {"concurrency": 4, "timeout_s": 20}
    async with Vendor(always(Reply(wire="trickling"))) as vendor, Bench(SERPER, vendor.url, section) as bench:
        for _ in range(5):
            calls = [asyncio.create_task(bench.ask()) for _ in range(12)]
            await asyncio.sleep(0.05)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        vendor.handler = SERPER.found
        assert await asyncio.gather(*(bench.ask() for _ in range(12))) == [SERPER.gives] * 12
        assert vendor.peak <= 8  # four of ours, and four that the vendor had not yet seen us leave


@pytest.mark.parametrize(
    ("budget", "cap"),
    [
        ({"run_calls": 37}, 37),
        ({"step_calls": 5}, 5),
        ({"day_calls": 0}, 0),
        ({"run_usd": 0.05}, 50),
        ({"day_usd": 0.0105}, 10),
    ],
)
async def test_a_cap_is_exact_whatever_comes_at_once(budget: dict[str, float], cap: int) -> None:
    section = {"usd_per_1000": 1.0, "price_as_of": "2026-01-01", "breaker_failures": 1}
    async with Vendor(SERPER.found, latency=0.01) as vendor, Bench(SERPER, vendor.url, section, {"budget": budget}) as bench:
        done = await asyncio.gather(*(bench.outcome() for _ in range(200)))
        done += [await bench.outcome()]
    assert statuses(done) == ["budget"] * (201 - cap) + ["found"] * cap
    assert (len(vendor.requests), bench.billed) == (cap, cap)
    assert all(next(iter(budget)) in d.detail for d in done if isinstance(d, SearchFailure))
    assert bench.metrics.upstreams.of("serper").plain()["usd"] == pytest.approx(cap / 1000)


async def test_failures_that_are_not_billed_leave_room_under_the_cap() -> None:
    half = in_turn(*[answer({}, 403), SERPER.found] * 10)
    section = {"breaker_failures": 100}
    async with Vendor(half) as vendor, Bench(SERPER, vendor.url, section, {"budget": {"run_calls": 10}}) as bench:
        done = [await bench.outcome() for _ in range(25)]
    assert statuses(done) == ["budget"] * 5 + ["found"] * 10 + ["upstream_error"] * 10
    assert (len(vendor.requests), bench.billed) == (20, 10)


async def test_time_outs_stay_under_the_cap() -> None:
    budget = {"budget": {"run_calls": 3}}
    async with Vendor(always(Reply(wire="silent"))) as vendor, Bench(SERPER, vendor.url, {"timeout_s": 1}, budget) as bench:
        done = await asyncio.gather(*(bench.outcome() for _ in range(9)))
    assert statuses(done) == ["budget"] * 6 + ["timeout"] * 3
    assert len(vendor.requests) == 3


async def test_nothing_is_remembered_between_calls() -> None:
    """A vendor's cookie would make an answer depend on the calls before it."""

    def sticky(asked: Asked) -> Reply:
        found = SERPER.found(asked)
        return Reply(found.body, 200, {**found.headers, "set-cookie": "who=you; Path=/"})

    async with Vendor(sticky) as vendor, Bench(SERPER, vendor.url) as bench:
        for _ in range(2):
            await bench.backend.search(QUERY, 5)
    assert [r.headers.get("cookie") for r in vendor.requests] == [None, None]


# ---------------------------------------------------------------------------------------------------- codes and headers
CODES = {
    **dict.fromkeys((400, 413, 414, 422), ToolStatus.REFUSED),
    **dict.fromkeys((301, 401, 403, 404, 405, 410, 418), ToolStatus.UPSTREAM_ERROR),
    **dict.fromkeys((408, 504), ToolStatus.TIMEOUT),
    **dict.fromkeys((500, 501, 502, 503, 520, 529), ToolStatus.UPSTREAM_ERROR),
    **{402: ToolStatus.BUDGET, 429: ToolStatus.RATE_LIMITED},
}


@pytest.mark.parametrize("code", CODES)
def test_what_a_code_means(code: int) -> None:
    failure = classify("x", code, {"error": "words"}, {})
    assert (failure.status, failure.detail) == (CODES[code], f"x answered HTTP {code}: words")
    assert (failure.retry is not None) == (code >= 500 or code == 429)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        *(("w", "w"), ({"error": "w"}, "w"), ({"error": {"message": "w", "code": 5}}, "w"), ({"message": "w"}, "w")),
        *(
            ({"detail": [{"loc": ["q"], "msg": "w"}]}, "w"),
            ({"errors": [{"detail": "w"}]}, "w"),
            ({"detail": {"error": "w"}}, "w"),
        ),
        *(({"error": 5, "message": "w"}, "w"), ({"error": None, "msg": "w"}, "w"), ({"error": {}, "detail": "w"}, "w")),
        *((None, ""), (5, ""), ([], ""), ({}, ""), ({"code": "w"}, ""), ([[]], ""), ({"error": True}, "")),
    ],
)
def test_where_vendors_say_what_is_wrong(said: Any, words: str) -> None:
    assert message(said) == words


def test_words_that_are_nested_without_end() -> None:
    said: Any = "w"
    for _ in range(5_000):
        said = {"error": said}
    assert message(said) == ""


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        *(({}, 0), ({"retry-after": "7"}, 7), ({"retry-after": " 0.5 "}, 0.5), ({"retry-after": "-7"}, 0)),
        *(
            ({"retry-after": v}, 0)
            for v in ("", "soon", "inf", "nan", "1e9", "²", "1_0", "0x10", "Mon, 99 Foo 2030 99:99:99 GMT")
        ),
        ({"retry-after": formatdate(0, usegmt=True)}, 0),
        ({"x-ratelimit-remaining": "0, 1000", "x-ratelimit-reset": "3, 1419704"}, 3),
        ({"x-ratelimit-remaining": "1, 0", "x-ratelimit-reset": "3, 1419704"}, 1_419_704),
        ({"x-ratelimit-remaining": "1, 9", "x-ratelimit-reset": "3, 1419704"}, 0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1790000000"}, 0),  # a moment, not a span
        ({"x-ratelimit-remaining": "0, 0", "x-ratelimit-reset": "x"}, 0),
        ({"retry-after": "1", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "3"}, 1),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], seconds: float) -> None:
    assert retry_after(headers) == seconds


def test_how_long_to_wait_until_a_date() -> None:
    assert 88 <= retry_after({"retry-after": formatdate(time.time() + 90, usegmt=True)}) <= 90


@given(st.text(max_size=60), st.text(max_size=30), st.text(max_size=30))
def test_headers_of_any_kind_give_a_number(after: str, left: str, reset: str) -> None:
    headers = {"retry-after": after, "x-ratelimit-remaining": left, "x-ratelimit-reset": reset}
    assert 0 <= retry_after(headers) < math.inf
    assert 0 <= retry_after({k: v for k, v in headers.items() if k != "retry-after"}) < math.inf
