"""The doctor on search: keys and accounts at a real HTTP server in the vendors' place; no search, and no key that shows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from doctor_tasks import alone, by_name, config
from vendors.bench import leaked
from vendors.server import Asked, Reply, Vendor, always, answer
from vendors.spec import KEY

from megatron_mmsr1.doctor.check import Finding, Level
from megatron_mmsr1.doctor.checks import search

# serpapi.com/account-api; docs.tavily.com/documentation/api-reference/endpoint/usage
SERPAPI = {"api_key": KEY, "account_email": "a@b.test", "searches_per_month": 30000, "total_searches_left": 5958}
TAVILY = {"key": {"usage": 150, "limit": 1000}, "account": {"plan_usage": 14500, "plan_limit": 15000, "paygo_usage": 25}}


def accounts(asked: Asked) -> Reply:
    if (asked.method, asked.path, asked.query.get("api_key")) == ("GET", "/account.json", KEY):
        return answer(SERPAPI)
    if (asked.method, asked.path, asked.headers.get("authorization")) == ("GET", "/usage", f"Bearer {KEY}"):
        return answer(TAVILY)
    return answer({"error": f"Invalid API key {KEY}"}, 401)


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for vendor in ("SERPAPI", "SERPER", "TAVILY", "BRAVE"):
        monkeypatch.setenv(f"{vendor}_API_KEY", KEY)


def examined(tmp_path: Any, vendor: Vendor | None = None, train: Any = None, **sections: Any) -> dict[str, Finding]:
    """Its findings, after a look that no form of the key is in them and that nothing was searched."""
    found = alone(search.run, config(tmp_path, search=sections, train=train or {}))
    assert not leaked(str([asdict(f) for f in found]))
    if vendor is not None:
        assert {r.path for r in vendor.requests} <= {"/account.json", "/usage"}
    return by_name(found)


def test_an_account_tells_what_is_left(tmp_path: Any) -> None:
    with Vendor(accounts) as v:
        found = examined(tmp_path, v, {"steps": 1}, text={"backend": "serpapi", "url": v.url})["search.text"]
        assert found.level is Level.OK and found.value == "serpapi: SERPAPI_API_KEY set; 5,958 of 30,000 searches left"
        # 100 steps of 256 trajectories with 0.7 text searches each, a fifth of them stored: 100 * 256 * 0.56.
        found = examined(tmp_path, v, text={"backend": "serpapi", "url": v.url})["search.text"]
        assert found.level is Level.WARNING and "14,336 calls" in found.advice
        found = examined(tmp_path, v, {"steps": 1}, text={"backend": "tavily", "url": v.url})["search.text"]
        assert found.data["left"] == 15000 - 25 - 14500 and found.data["of"] == 15000 - 25
        assert len(v.requests) == 3


@pytest.mark.parametrize(("used", "limit", "left", "level"), [(1000, 1000, 0, "error"), (5, None, None, "ok")])
def test_a_key_that_is_used_up_or_has_no_limit(tmp_path: Any, used: int, limit: int | None, left: Any, level: str) -> None:
    with Vendor(always(answer({"key": {"usage": used, "limit": limit}}))) as v:
        found = examined(tmp_path, v, text={"backend": "tavily", "url": v.url})["search.text"]
    assert (found.data["left"], found.level) == (left, level)


def test_a_lens_asks_the_account_of_its_vendor(tmp_path: Any) -> None:
    image = {"uploader": "signed_route", "upload": {"base_url": "https://out.test"}}
    with Vendor(accounts) as v:
        found = examined(tmp_path, v, {"steps": 1}, image={"backend": "serpapi_lens", "url": v.url, **image})["search.image"]
        assert "5,958 of 30,000" in found.value
        found = examined(tmp_path, v, image={"backend": "serper_lens", "url": v.url, **image})["search.image"]
    assert found.level is Level.OK and "its quota is not known" in found.value


@pytest.mark.parametrize("name", ["serper", "brave"])
def test_a_vendor_without_a_free_account_page_is_not_asked(tmp_path: Any, name: str) -> None:
    with Vendor(accounts) as v:
        found = examined(tmp_path, v, text={"backend": name, "url": v.url})["search.text"]
    assert found.level is Level.OK and not v.requests
    assert found.value == f"{name}: {name.upper()}_API_KEY set; its quota is not known: no free way to ask for it"


def test_a_key_that_is_refused_and_a_vendor_that_is_away(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vendor quotes the key; at the vendor's own address this is an error, at a server of one's own before it a warning."""
    from megatron_mmsr1.search.backends.text import serpapi

    with Vendor(always(answer({"error": f"Invalid API key {KEY}"}, 401))) as v:
        monkeypatch.setattr(serpapi, "URL", v.url)
        found = examined(tmp_path, v, text={"backend": "serpapi"})["search.text"]
        assert found.level is Level.ERROR and "HTTP 401" in found.value and "***" in found.value
        found = examined(tmp_path, v, text={"backend": "serpapi", "url": v.url})["search.text"]
        assert found.level is Level.WARNING
        v.kill()
        found = examined(tmp_path, v, text={"backend": "serpapi", "retries": 0})["search.text"]
        assert found.level is Level.ERROR and "no connection" in found.value


def test_a_key_that_is_missing_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERPAPI_API_KEY")
    found = examined(tmp_path, text={"backend": "serpapi"})["search.text"]
    assert found.level is Level.ERROR and "set SERPAPI_API_KEY in the environment" in found.advice


def test_what_is_local_is_not_opened(tmp_path: Any) -> None:
    found = examined(tmp_path, corpus="no/such/directory")
    assert set(found) == {f"search.{k}" for k in ("text", "image", "read", "summarise")}
    assert all(f.level is Level.OK and "on this machine, or none" in f.value for f in found.values())


def test_a_summariser_that_the_run_starts_is_not_asked_for(tmp_path: Any) -> None:
    cfg = config(tmp_path, search={"summarise": {"backend": "openai"}}, placement={"summariser": {"model": "m"}})
    found = by_name(alone(search.run, cfg))["search.summarise"]
    assert found.level is Level.OK and "the run starts its model" in found.value


def test_a_server_that_runs_is_asked_whether_it_is_ready(tmp_path: Any) -> None:
    with Vendor(always(answer({"ready": True}))) as v:
        found = by_name(alone(search.run, config(tmp_path, search={"url": v.url})))["server"]
        assert found.level is Level.OK and [r.path for r in v.requests] == ["/readyz"]


def test_a_run_that_searches_nothing_has_nothing_to_ask(tmp_path: Any) -> None:
    none = {"image_searches": 0, "text_searches": 0}
    assert alone(search.run, config(tmp_path, protocol=none)) == [] == alone(search.run)
