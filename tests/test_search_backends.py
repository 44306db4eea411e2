"""Every live backend against a loopback server that speaks its vendor's wire format: what it documents, and what breaks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate

import pytest
import zstandard
from vendors.all import SPECS
from vendors.bench import Bench, leaked
from vendors.server import Handler, Reply, Vendor, always, answer, in_turn
from vendors.spec import KEY, Spec

from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.upstream import upstream
from megatron_mmsr1.search.upstream.deadline import within
from megatron_mmsr1.trajectory import ToolStatus as S

HTML = Reply(b"<html><title>Welcome</title>log in</html>", 200, {"content-type": "text/html"})


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in SPECS.values():
        monkeypatch.setenv(spec.key_name, KEY)
    monkeypatch.setattr(upstream, "BACKOFF_S", 0.001)


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> Spec:
    return SPECS[request.param]


def limited(spec: Spec, after: str) -> Reply:
    reply = spec.error(429, "slow down")
    return Reply(reply.body, 429, {**reply.headers, "retry-after": after})


def worded(spec: Spec, code: int) -> Reply:
    return spec.error(code, f"no, {KEY}, no")


def long_reply(spec: Spec) -> Reply:
    return answer({"words": ["a body shorter than its Content-Length"] * 50})


def squeezed(reply: Reply) -> Reply:
    return Reply(zstandard.compress(reply.body), 200, {**reply.headers, "content-encoding": "zstd"})


@dataclass(slots=True, frozen=True)
class Mode:
    """A way to fail: `status` OK means that the backend recovers. `tries`: requests that the vendor then saw."""

    handler: Callable[[Spec], Handler]
    status: S
    tries: int = 1
    billed: bool = False
    timeout_s: float = 5.0


MODES = {
    "slow": Mode(lambda _: always(Reply(wire="silent")), S.TIMEOUT, billed=True, timeout_s=0.5),
    "slow body": Mode(lambda _: always(Reply(wire="trickling")), S.TIMEOUT, billed=True, timeout_s=0.5),
    "endless body": Mode(lambda _: always(Reply(wire="endless")), S.UPSTREAM_ERROR, billed=True, timeout_s=60),
    "truncated body": Mode(
        lambda s: always(Reply(long_reply(s).body, 200, long_reply(s).headers, "truncated")), S.UPSTREAM_ERROR, billed=True
    ),
    "dropped": Mode(lambda _: always(Reply(wire="dropped")), S.UPSTREAM_ERROR, billed=True),
    "garbage": Mode(
        lambda _: always(Reply(b'{"results": [', 200, {"content-type": "application/json"})), S.UPSTREAM_ERROR, billed=True
    ),
    "bytes": Mode(lambda _: always(Reply(b"\xff\xfe\x00", 200)), S.UPSTREAM_ERROR, billed=True),
    "nothing": Mode(lambda _: always(Reply(b"", 200)), S.UPSTREAM_ERROR, billed=True),
    "no content": Mode(lambda _: always(Reply(b"", 204)), S.UPSTREAM_ERROR, billed=True),
    "null": Mode(lambda _: always(answer(None)), S.UPSTREAM_ERROR, billed=True),
    "HTML": Mode(lambda _: always(HTML), S.UPSTREAM_ERROR, billed=True),
    "an encoding not asked for": Mode(lambda s: lambda asked: squeezed(s.found(asked)), S.UPSTREAM_ERROR, billed=True),
    "JSON that says it is HTML": Mode(
        lambda s: lambda asked: Reply(s.found(asked).body, 200, HTML.headers), S.UPSTREAM_ERROR, billed=True
    ),
    "broken gzip": Mode(lambda _: always(answer({}, content_encoding="gzip")), S.UPSTREAM_ERROR, billed=True),
    "moved": Mode(lambda _: always(Reply(b"", 301, {"location": "http://elsewhere.test/"})), S.UPSTREAM_ERROR),
    "key refused": Mode(lambda s: always(worded(s, 401)), S.UPSTREAM_ERROR),
    "gateway": Mode(lambda _: always(Reply(HTML.body, 502, HTML.headers)), S.UPSTREAM_ERROR, tries=3),
    "down": Mode(lambda s: always(worded(s, 503)), S.UPSTREAM_ERROR, tries=3),
    "down once": Mode(lambda s: in_turn(worded(s, 500), s.found), S.OK, tries=2, billed=True),
    "down twice": Mode(lambda s: in_turn(worded(s, 503), worded(s, 500), s.found), S.OK, tries=3, billed=True),
    "limited": Mode(lambda s: always(worded(s, 429)), S.RATE_LIMITED, tries=3),
    "limited once": Mode(lambda s: in_turn(worded(s, 429), s.found), S.OK, tries=2, billed=True),
    "limited, seconds": Mode(lambda s: in_turn(limited(s, "0.05"), s.found), S.OK, tries=2, billed=True),
    "limited, a date gone by": Mode(lambda s: in_turn(limited(s, formatdate(0, usegmt=True)), s.found), S.OK, 2, True),
    "limited for an hour": Mode(lambda s: always(limited(s, "3600")), S.RATE_LIMITED),
    "limited until a date": Mode(lambda s: always(limited(s, formatdate(time.time() + 3600, usegmt=True))), S.RATE_LIMITED),
    "limited, nonsense": Mode(lambda s: in_turn(limited(s, "soon; inf"), s.found), S.OK, tries=2, billed=True),
}


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
async def test_whatever_breaks_is_typed_and_shows_no_key(spec: Spec, mode: str, caplog: pytest.LogCaptureFixture) -> None:
    how = MODES[mode]
    with caplog.at_level(logging.DEBUG):
        async with Vendor(how.handler(spec)) as vendor, Bench(spec, vendor.url, {"timeout_s": how.timeout_s}) as bench:
            outcome = await bench.outcome()
    if how.status is S.OK:
        assert outcome == spec.gives
    else:
        assert isinstance(outcome, SearchFailure)
        assert (outcome.status, len(outcome.detail) <= upstream.DETAIL_CHARS) == (how.status, True), outcome
    assert len(vendor.requests) == how.tries
    assert bench.billed == how.billed
    assert not leaked(bench.shown(outcome, caplog.text))


CASES = [(name, case) for name, s in SPECS.items() for case in s.cases]


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda v: v.replace(" ", "-"))
async def test_what_is_documented(name: str, case: str, caplog: pytest.LogCaptureFixture) -> None:
    documented = SPECS[name].cases[case]
    with caplog.at_level(logging.DEBUG):
        async with Vendor(always(documented.reply)) as vendor, Bench(SPECS[name], vendor.url) as bench:
            outcome = await bench.outcome()
    if documented.status is S.OK:
        assert outcome == documented.gives
    else:
        assert isinstance(outcome, SearchFailure)
        assert outcome.status == documented.status, outcome
    assert len(vendor.requests) == documented.tries
    assert bench.billed == documented.billed
    assert not leaked(bench.shown(outcome, caplog.text))


async def test_success(spec: Spec, caplog: pytest.LogCaptureFixture) -> None:
    """The server answers only to the right key, so this also shows that the key arrives."""
    with caplog.at_level(logging.DEBUG):
        async with Vendor(spec.found) as vendor, Bench(spec, vendor.url) as bench:
            assert await bench.ask() == spec.gives
    assert (len(vendor.requests), bench.billed) == (1, 1)
    assert not leaked(bench.shown(None, caplog.text))


async def test_a_wrong_key_is_an_error_of_the_upstream_which_is_told(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(spec.key_name, "another")
    async with Vendor(spec.found) as vendor, Bench(spec, vendor.url) as bench:
        outcome = await bench.outcome()
    assert isinstance(outcome, SearchFailure)
    assert (outcome.status, len(vendor.requests)) == (S.UPSTREAM_ERROR, 1)
    assert spec.backend in outcome.detail


async def test_json_of_another_shape(spec: Spec) -> None:
    patient = {"breaker_failures": 100}
    async with Vendor(in_turn(*map(answer, spec.unlike))) as vendor, Bench(spec, vendor.url, patient) as bench:
        outcomes = [await bench.outcome() for _ in spec.unlike]
    for unlike, outcome in zip(spec.unlike, outcomes, strict=True):
        assert isinstance(outcome, SearchFailure), unlike
        assert outcome.status is S.UPSTREAM_ERROR, unlike
    assert len(vendor.requests) == len(spec.unlike)


async def test_nobody_there(spec: Spec) -> None:
    async with Vendor(spec.found) as vendor, Bench(spec, vendor.url) as bench:
        vendor.kill()
        outcome = await bench.outcome()
        assert isinstance(outcome, SearchFailure)
        assert (outcome.status, bench.retries, bench.billed) == (S.UPSTREAM_ERROR, 2, 0)
        vendor.revive()
        assert await bench.ask() == spec.gives


async def test_the_deadline_is_kept_and_retries_do_not_wait_past_it(spec: Spec) -> None:
    async with Vendor(always(limited(spec, "2"))) as vendor, Bench(spec, vendor.url) as bench:
        with pytest.raises(SearchFailure) as told:
            async with within(1.0, "the call"):
                await bench.ask()
        assert (told.value.status, len(vendor.requests)) == (S.RATE_LIMITED, 1)
        vendor.handler = always(Reply(wire="silent"))
    async with Vendor(always(Reply(wire="silent"))) as vendor, Bench(spec, vendor.url) as bench:
        with pytest.raises(SearchFailure) as told:
            async with within(0.1, "the call"):
                await bench.ask()
        assert told.value.status is S.TIMEOUT and "the call" in told.value.detail


async def test_versions_tell_settings_apart_and_nothing_else(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(url: str = "http://user:secret-word@127.0.0.1:9", **section: object) -> str:
        return Bench(spec, url, section).backend.version

    plain = version()
    assert plain == version("http://127.0.0.1:1/v1") == version(concurrency=1, timeout_s=3.0, retries=0)
    assert "secret-word" not in plain
    monkeypatch.setenv(spec.key_name, "another")
    assert version() == plain
    changed = {
        "text": {"language": "de"} if spec.backend not in ("tavily", "retrieve") else {},
        "read": {"max_chars": 7},
        "summarise": {"model": "other"},
    }[spec.kind]
    assert not changed or version(**changed) != plain


def test_every_live_backend_is_here() -> None:
    from megatron_mmsr1.search.server.compose import registry

    kinds = {"text": {"bm25", "ddgs"}, "read": {"corpus", "trafilatura"}, "summarise": {"extractive"}}
    for kind, tested_elsewhere in kinds.items():
        assert set(registry(kind).names()) - tested_elsewhere == {s.backend for s in SPECS.values() if s.kind == kind}
